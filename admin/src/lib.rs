//! The HTTP admin door of Strata: policy, stats, purge, health, metrics, dashboard.
//!
//! In reading order:
//!
//! - [`control`]: `trait Control`, everything this crate needs from a node. [`view`]: the only serialised types.
//! - [`server`]: socket, thread, bounds, shutdown. `io` joins tokio's sockets and timers to hyper.
//! - `routes`: the one table of routes, and dispatch from it. `policy`, `purge`: the endpoints with a body.
//! - `openapi`: the document made from that table. `metrics`: the scrape page made from [`view::StatsView`].
//!   `dashboard`: the page for people.
//! - `body`, `json`, `merge`, `etag`, `mask`, `respond`: pure leaves.
//!
//! Invariants:
//!
//! - INV-ADMIN-1 A policy change is compare-and-swap: no change the client did not see is overwritten by a request
//!   that carried a precondition, and a merge patch is applied to exactly the document it was merged with.
//! - INV-ADMIN-2 A route that is served is documented, and the reverse: both come from `routes::ROUTES`.
//! - INV-ADMIN-3 No secret leaves: `mask` runs over every setting on its way out, whatever the node said of it.
//! - INV-ADMIN-4 Connections, headers, bodies, waits and retries are bounded ([`server::Limits`]).
//!
//! Absent on purpose: what a policy means (a JSON document here), tiers and shards as anything but names with
//! numbers, and authentication: the node refuses to bind this door beyond loopback without it.

pub mod control;
pub mod server;
pub mod view;

mod body;
mod dashboard;
mod etag;
mod io;
mod json;
mod mask;
mod merge;
mod metrics;
mod openapi;
mod policy;
mod purge;
mod respond;
mod routes;

pub use control::{Answer, Control, Health, PolicyError, PurgeError, Reason, Unavailable};
pub use server::{AdminError, AdminServer, Limits, Running};
