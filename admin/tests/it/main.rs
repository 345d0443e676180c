//! The admin door from outside: real sockets, one node double behind them.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test, with its place")]

mod client;
mod doors;
mod fake;
mod pages;
mod policy;
mod purge;
mod reads;
