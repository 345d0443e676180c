//! The doors of a shard: from accepted sockets to calls of [`Storage`](crate::cache::Storage), and back.
//!
//! In reading order: [`listener`] accepts, [`connection`] speaks HTTP/1.1 over a socket and bounds what a client may
//! hold, [`wire`] moves its bytes, [`inflight`] bounds the bodies, [`service`] turns one request into calls of a `Storage` and one answer, [`body`] streams a hit,
//! [`dispatch`] finds the shard that owns the key, [`stats`] counts. What the bytes mean is in
//! [`protocol`](crate::protocol); what is kept where is no concern of a door.
//!
//! Everything here runs on one shard's thread and shares nothing with another's.

pub mod body;
pub mod connection;
pub mod dispatch;
pub mod inflight;
pub mod listener;
pub mod service;
pub mod stats;
pub mod wire;

#[cfg(test)]
mod tests;
