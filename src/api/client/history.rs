//! History that other servers have to be asked for before it can be read.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::events::Reader;
use crate::{
    api::error::Error,
    rooms::{Gap, Page, PageQuery, Place},
    server::Server,
    storage::{Order, Snapshot},
};

/// Events asked for at once: what is read next is then here already.
const EVENTS: usize = 100;
/// Questions for one request, and how long others may be asked.
const MAX_ROUNDS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `read`, which also says where events are missing in what it has read; and again, once they are here.
pub(super) async fn read_whole<T: Send + 'static>(
    server: &Server,
    read: impl Fn(&Snapshot) -> Result<(T, Option<Gap>), Error> + Send + Sync + 'static,
) -> Result<T, Error> {
    let read = Arc::new(read);
    let started = Instant::now();
    let mut rounds = 0;
    loop {
        let once = Arc::clone(&read);
        let (answer, gap) = server.store.read(move |snapshot| once(snapshot)).await?;
        let Some(gap) = gap else { return Ok(answer) };
        if rounds == MAX_ROUNDS || started.elapsed() > PATIENCE {
            return Ok(answer);
        }
        rounds += 1;
        let filled = server.federation.backfill(&gap, EVENTS).await;
        if !filled.map_err(Error::of_federation)? {
            return Ok(answer);
        }
    }
}

impl Reader {
    /// The gap that a page has gone across, or ended at.
    pub(super) fn gap_in(
        &self,
        snapshot: &Snapshot,
        query: PageQuery,
        page: &mut Page,
    ) -> Result<Option<Gap>, Error> {
        if query.order == Order::Forward {
            return Ok(None);
        }
        let found = self
            .rooms
            .gap_at_or_below(snapshot, self.room, query.from.0)?;
        let is_full = page.events.len() >= query.limit;
        let lowest = page.events.last().map(|placed| placed.index);
        let reaches = |gap: &Gap| match lowest {
            // The events up to here lie above the gap, and there is no room for more.
            Some(lowest) if is_full => gap.index > lowest,
            _ => query.to.is_none_or(|to| gap.index > to.0.saturating_add(1)),
        };
        let gap = found.filter(reaches);
        if page.end.is_none()
            && let (Some(_), Some(lowest)) = (&gap, lowest)
        {
            // There may be more another time.
            page.end = Some(Place::before(lowest));
        }
        Ok(gap)
    }
}
