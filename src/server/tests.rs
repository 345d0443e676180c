//! The door as a client meets it, over a simulated socket and clock: transcripts, hostile clients, limits.

mod limits;
mod sockets;
mod transcripts;
mod whole_or_error;
mod world;
