//! Sockets of a shard.
//!
//! Owns [`listen()`] and [`Port`] (a listening socket of the whole process), [`Listener`] (one shard's share of its
//! connections) and [`Stream`] (one connection, bound to its shard). Invariants:
//!
//! - A port belongs to this process alone: it is bound without SO_REUSEPORT, so a second node or another program
//!   gets "address in use", and so do we. The executor's own listener would share it silently.
//! - Connections are dealt to the shards in turn, by one small thread per port, through bounded mailboxes; whoever
//!   has no room is passed over.
//! - The kernel holds no buffer of ours: a stream waits for readiness and then copies at once, so any future may be
//!   dropped at any time (INV-7).
//! - A port that was closed is free when [`Port::close`] returns; what it had accepted is still served.
//!
//! Left to others: protocols, timeouts, how many connections may be open. Nothing outside knows what moves the bytes.

mod listen;
mod stream;

pub use self::{
    listen::{BindError, LISTEN_BACKLOG, Listener, Port, UNTAKEN_MAX, listen},
    stream::Stream,
};

#[cfg(test)]
mod tests;
