//! The node, as the admin door sees it.
//!
//! Owns the policy in force (one change at a time, kept on disk before it is told to the shards) and the state that
//! health answers come from. Lives on the admin thread; everything it asks of a shard goes by mailbox.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use admin::{
    Answer, Control, Health, PolicyError, PurgeError, Reason as HealthReason, Unavailable,
    view::{BuildView, ConfigView, PolicyView, PurgeReport, PurgeRequest, StatsView},
};
use engine::{
    clock::{Clock, MachineClock},
    mailbox::{Reply, Sender, oneshot},
    shard::Heart,
};
use serde_json::Value;

use super::{
    command::{Command, ShardReport},
    shortage::Shortage,
    view,
};
use crate::{
    cache::{CacheKey, KeyError, Precondition, Storage},
    config::Config,
    datadir::PolicyFile,
    namespace::{Registry, Reserved},
    policy::{self, Policy, VersionedPolicy},
    protocol::http::target,
    reason::Reason,
    storage::{
        bridge::Bridge,
        durable::executor::{DurableControl, DurableStats},
    },
};

/// The node behind `admin::Control`.
pub(super) struct NodeControl {
    pub(super) config: Arc<Config>,
    pub(super) hash_seed: u64,
    pub(super) clock: MachineClock,
    pub(super) started: std::time::Duration,
    /// By shard.
    pub(super) commands: Vec<Sender<Command>>,
    /// By shard: the way to its keys.
    pub(super) asks: Vec<Bridge>,
    pub(super) hearts: Vec<Arc<Heart>>,
    pub(super) durable: DurableControl,
    pub(super) policy_file: PolicyFile,
    pub(super) policy: Mutex<VersionedPolicy>,
    /// The names in use without being declared.
    pub(super) registry: Arc<Registry>,
    /// Held while the policy changes.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// What health was last known to be wrong, refreshed by [`NodeControl::watch`].
    pub(super) wrong: Mutex<Vec<HealthReason>>,
    /// What L3 has no room for, likewise.
    pub(super) shortage: Mutex<Shortage>,
    pub(super) stopping: AtomicBool,
}

impl NodeControl {
    fn policy_now(&self) -> VersionedPolicy {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks every shard and collects the answers, in order.
    async fn ask_all<T: Send>(&self, command: impl Fn(Reply<T>) -> Command) -> Result<Vec<T>, Unavailable> {
        let gone = |shard: usize| Unavailable(format!("shard {shard} has ended"));
        let mut answers = Vec::with_capacity(self.commands.len());
        for (shard, sender) in self.commands.iter().enumerate() {
            let (reply, answer) = oneshot();
            sender.send(command(reply)).await.map_err(|_| gone(shard))?;
            answers.push(answer);
        }
        let mut collected = Vec::with_capacity(answers.len());
        for (shard, answer) in answers.into_iter().enumerate() {
            collected.push(answer.await.ok_or_else(|| gone(shard))?);
        }
        Ok(collected)
    }

    async fn figures(&self) -> Result<(Vec<ShardReport>, DurableStats), Unavailable> {
        let reports = self.ask_all(Command::Report).await?;
        let durable = self.durable.stats().await.ok_or_else(|| Unavailable("the durable executor has ended".into()))?;
        Ok((reports.into_iter().map(|report| *report).collect(), durable))
    }

    /// Looks at the shards and remembers what is wrong; called every second or so by the node.
    pub(super) async fn watch(&self) {
        let wrong = match self.figures().await {
            Ok((reports, durable)) => {
                let mut wrong = view::wrong(&reports, &durable);
                let short = self.short_of(&durable).await;
                wrong.extend(short.into_iter().map(|reason| view::no_room(reason, &self.config)));
                wrong
            }
            Err(Unavailable(why)) => vec![HealthReason { code: "unavailable", message: why }],
        };
        *self.wrong.lock().unwrap_or_else(PoisonError::into_inner) = wrong;
    }

    /// What L3 has no room for.
    async fn short_of(&self, durable: &DurableStats) -> Vec<Reason> {
        let control = self.durable.clone();
        // A file system that does not answer holds up this look only, and the next ones.
        let full = tokio::task::spawn_blocking(move || control.full()).await.unwrap_or_default();
        let mut shortage = self.shortage.lock().unwrap_or_else(PoisonError::into_inner);
        shortage.look(&durable.tier.refusals, full)
    }

    /// Whether every namespace that is known keeps its mode. A namespace that becomes a cache must be unused until
    /// now, and is kept so while what this returns lives.
    async fn check_modes(&self, next: &Policy, current: &Policy) -> Result<Reserved, PolicyError> {
        // Even without flash: RAM holds copies, and requests are under way.
        next.keeps_modes_of(current, true).map_err(invalid)?;
        let reserved = self.registry.reserve(next.caches_new_since(current));
        let reserved = reserved.map_err(|name| invalid(in_use(&name)))?;
        for name in next.caches_new_since(current) {
            match self.durable.holds(name).await {
                Some(Ok(false)) => {}
                Some(Ok(true)) => return Err(invalid(in_use(name))),
                Some(Err(error)) => return Err(PolicyError::Unavailable(view::chain(&error))),
                None => return Err(PolicyError::Unavailable("the durable executor has ended".into())),
            }
        }
        Ok(reserved)
    }

    fn key(&self, request: &PurgeRequest) -> Result<CacheKey, PurgeError> {
        let invalid = |field: &str, message: String| PurgeError::Invalid { field: field.into(), message };
        let path = target::normalise(format!("{}/{}", request.namespace, request.key).as_bytes())
            .ok_or_else(|| invalid("/key", "a % is not followed by two hex digits".into()))?;
        CacheKey::from_path(path, self.hash_seed).map_err(|refused| {
            let field = if refused == KeyError::Namespace { "/namespace" } else { "/key" };
            invalid(field, refused.to_string())
        })
    }
}

fn invalid(refused: policy::PolicyError) -> PolicyError {
    PolicyError::Invalid { field: refused.pointer, message: refused.message }
}

/// A namespace that is to be a cache, and is durable.
fn in_use(namespace: &str) -> policy::PolicyError {
    let message = format!(
        "`{namespace}` is in use as durable and stays it: it was declared as that or written to, or L3 holds objects \
         of it or tombstones of deleted ones; declare another namespace as cache_only"
    );
    policy::PolicyError::mode(namespace, message)
}

impl Control for NodeControl {
    fn health(&self) -> Health {
        let stopping = self.stopping.load(Ordering::SeqCst);
        let dead = self.hearts.iter().find(|heart| !heart.is_running());
        let mut degraded = self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if stopping {
            degraded.push(HealthReason { code: "stopping", message: "the node is stopping".into() });
        } else if let Some(heart) = dead {
            degraded.push(HealthReason { code: "internal", message: format!("shard {} has ended", heart.shard()) });
        }
        Health { live: stopping || dead.is_none(), ready: !stopping && dead.is_none(), degraded }
    }

    fn build(&self) -> BuildView {
        view::build()
    }

    fn config(&self) -> ConfigView {
        view::config(&self.config)
    }

    fn policy(&self) -> PolicyView {
        let policy = self.policy_now();
        PolicyView { document: policy.policy.to_json(), version: policy.version }
    }

    fn policy_replace(&self, document: Value, expected: Option<u64>) -> Answer<'_, Result<PolicyView, PolicyError>> {
        Box::pin(async move {
            let _changing = self.changing.lock().await;
            let VersionedPolicy { version: current, policy: before } = self.policy_now();
            if expected.is_some_and(|expected| expected != current) {
                return Err(PolicyError::VersionMismatch { current });
            }
            let policy = Policy::from_json(&document).map_err(invalid)?;
            if policy == *self.policy_now().policy {
                return Ok(self.policy());
            }
            // Until the change is in force everywhere, or given up.
            let _reserved = self.check_modes(&policy, &before).await?;
            let next = VersionedPolicy { version: current + 1, policy: Arc::new(policy) };
            let (file, kept) = (self.policy_file.clone(), next.clone());
            // Durable before it is in force: a restart must not take a policy back that was answered.
            match tokio::task::spawn_blocking(move || file.save(&kept)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(PolicyError::Unavailable(error.to_string())),
                Err(error) => return Err(PolicyError::Unavailable(error.to_string())),
            }
            self.registry.leave(next.policy.durables_gone_since(&before));
            *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = next.clone();
            self.ask_all(|done| Command::Policy(next.clone(), done))
                .await
                .map_err(|Unavailable(why)| PolicyError::Unavailable(why))?;
            tracing::info!(version = next.version, "the policy was changed");
            Ok(PolicyView { document: next.policy.to_json(), version: next.version })
        })
    }

    fn stats(&self) -> Answer<'_, Result<StatsView, Unavailable>> {
        Box::pin(async move {
            let (reports, durable) = self.figures().await?;
            let policy = self.policy_now();
            let uptime = self.clock.elapsed().saturating_sub(self.started);
            let mut stats = view::stats(&reports, &self.hearts, &durable, &policy, &self.config, uptime);
            let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
            if wrong.iter().any(view::is_no_room) {
                view::no_room_in_l3(&mut stats);
            }
            Ok(stats)
        })
    }

    fn purge(&self, request: PurgeRequest) -> Answer<'_, Result<PurgeReport, PurgeError>> {
        Box::pin(async move {
            let key = self.key(&request)?;
            let rules = self.policy_now().policy.effective(key.namespace());
            let rules = rules.unwrap_or_else(|| self.policy_now().policy.undeclared().clone());
            let shard = key.shard(self.asks.len());
            let purged = self.asks[shard].purge(&key, Precondition::None).await;
            let report = purged.map_err(|error| PurgeError::Unavailable(view::chain(&error)))?;
            // Only a figure: a shard that has ended counts nothing any more.
            drop(self.commands[shard].send(Command::Purged(key.namespace().into())).await);
            let key = String::from_utf8_lossy(key.key()).into_owned();
            Ok(view::purge(PurgeRequest { key, ..request }, &report, &rules, view::tiers_on(&self.config)))
        })
    }
}
