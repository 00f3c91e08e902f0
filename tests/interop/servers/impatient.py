"""Becomes a Synapse that looks every second, not every minute, for servers that were away and have not been told everything.

It has no setting for that. A test would wait most of its time for a retry that comes anyway.
"""

from synapse.app import homeserver
from synapse.federation import sender
from synapse.util.duration import Duration

sender.WAKEUP_RETRY_PERIOD = Duration(seconds=1)
sender.WAKEUP_INTERVAL_BETWEEN_DESTINATIONS = Duration(milliseconds=100)
homeserver.main()
