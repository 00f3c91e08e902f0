//! Who waits for what.

/// What a change can wake. Numbers are those of `accounts` and `rooms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Events, receipts, typing of a room.
    Room(u32),
    /// Account data, memberships, presence seen by a user.
    User(u32),
    /// To-device messages and key counts of a device: user number and a hash of the device ID.
    Device(u32, u64),
    /// Something to send to a server.
    Destination(u32),
    /// Any published batch: for followers.
    Log,
}
