//! What the benches share: their command line, a node to measure, a closed-loop load, and how figures are summed up.
//!
//! No figure here passes or fails anything: the benches print, people judge. What does end a bench with an error is
//! an answer that was not the expected one, because a rate of refusals is no rate.

mod cli;
mod load;
pub(crate) mod machine;
mod node;

use std::{error::Error, time::Duration};

use hdrhistogram::Histogram;

pub(crate) use self::{
    cli::{Begin, begin},
    load::{Load, Plan, Run, Until},
    machine::{cpu_time, say_machine},
    node::Node,
};

/// What a bench fails with: shown, and the end.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// The middle one; of an even number, the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Prints one line of latencies in milliseconds, from a histogram of nanoseconds.
pub(crate) fn say_latency(name: &str, latency: &Histogram<u64>) {
    let ms = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64() * 1e3;
    print!("  {name:<16}");
    for quantile in [0.5, 0.9, 0.99, 0.999] {
        print!("{:>10.3}", ms(latency.value_at_quantile(quantile)));
    }
    println!("{:>10.3}", ms(latency.max()));
}

/// Prints the head of the lines of [`say_latency`].
pub(crate) fn say_latency_head() {
    println!("\n  {:<16}{:>10}{:>10}{:>10}{:>10}{:>10}", "latency, ms", "p50", "p90", "p99", "p99.9", "max");
}
