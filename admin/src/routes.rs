//! The one table of routes, and dispatch from it.
//!
//! [`ROUTES`] is the source of the router, of `Allow`, of the checks on a body and of `/openapi.json`, so that none
//! of them can say something else (INV-ADMIN-2). What an endpoint does is in [`Door::answer`] and below.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header, request::Parts};
use hyper::body::{Body, Incoming};

use crate::{
    body,
    control::{Control, Unavailable},
    dashboard, mask, metrics, openapi, policy, purge,
    respond::{self, JSON, Refusal, Reply, refuse},
    server::Limits,
    view::{HealthView, StatsView},
};

/// Bytes in the body of a policy or a patch at most (413).
pub(crate) const POLICY_BYTES_MAX: usize = 1 << 20;
/// Bytes in the body of a purge at most (413): a key of 4 KiB with every byte escaped, and then some.
const PURGE_BYTES_MAX: usize = 32 << 10;

/// One operation.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    /// OpenAPI `operationId`.
    pub(crate) id: &'static str,
    pub(crate) summary: &'static str,
    /// What its body must be; `None` if it takes none.
    pub(crate) body: Option<BodyRule>,
    /// Honours `If-Match` and `If-None-Match`.
    pub(crate) conditional: bool,
    /// What it answers, besides the problems that follow from the members above.
    pub(crate) answers: &'static [(u16, Content)],
    endpoint: Endpoint,
}

/// What a request body must be.
#[derive(Debug)]
pub(crate) struct BodyRule {
    pub(crate) content_types: &'static [&'static str],
    pub(crate) content: Content,
    pub(crate) bytes_max: usize,
}

/// What a body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Empty,
    Policy,
    PolicyPatch,
    Health,
    Build,
    Config,
    Stats,
    PurgeRequest,
    PurgeReport,
    OpenApi,
    Metrics,
    Page,
    Problem,
}

#[derive(Clone, Copy, Debug)]
enum Endpoint {
    Dashboard,
    Live,
    Ready,
    PolicyGet,
    PolicyPut,
    PolicyPatch,
    Stats,
    Purge,
    Config,
    Build,
    Metrics,
    OpenApi,
}

const POLICY_PATCH_TYPES: &[&str] = &["application/merge-patch+json", JSON];

/// A route without body or preconditions, to be completed by struct update.
const fn get(
    path: &'static str,
    id: &'static str,
    endpoint: Endpoint,
    summary: &'static str,
    answers: &'static [(u16, Content)],
) -> Route {
    Route { method: Method::GET, path, id, summary, body: None, conditional: false, answers, endpoint }
}

/// Every route there is. `HEAD` is served where `GET` is, `OPTIONS` everywhere.
pub(crate) static ROUTES: [Route; 12] = [
    get("/", "dashboard", Endpoint::Dashboard, "A page for people", &[(200, Content::Page)]),
    get(
        "/healthz",
        "health_live",
        Endpoint::Live,
        "Whether the process works",
        &[(200, Content::Health), (503, Content::Health)],
    ),
    get(
        "/readyz",
        "health_ready",
        Endpoint::Ready,
        "Whether to send traffic here; degraded is 200 with reasons",
        &[(200, Content::Health), (503, Content::Health)],
    ),
    Route {
        method: Method::GET,
        path: "/v1/policy",
        id: "policy_get",
        summary: "The policy in effect; its version is the entity tag",
        body: None,
        conditional: true,
        answers: &[(200, Content::Policy), (304, Content::Empty)],
        endpoint: Endpoint::PolicyGet,
    },
    Route {
        method: Method::PUT,
        path: "/v1/policy",
        id: "policy_put",
        summary: "Replaces the policy; a member left out takes its default",
        body: Some(BodyRule { content_types: &[JSON], content: Content::Policy, bytes_max: POLICY_BYTES_MAX }),
        conditional: true,
        answers: &[(200, Content::Policy), (503, Content::Problem)],
        endpoint: Endpoint::PolicyPut,
    },
    Route {
        method: Method::PATCH,
        path: "/v1/policy",
        id: "policy_patch",
        summary: "Changes parts of the policy (RFC 7396): null puts a member back to its default, \"none\" lifts a limit",
        body: Some(BodyRule {
            content_types: POLICY_PATCH_TYPES,
            content: Content::PolicyPatch,
            bytes_max: POLICY_BYTES_MAX,
        }),
        conditional: true,
        answers: &[(200, Content::Policy), (503, Content::Problem)],
        endpoint: Endpoint::PolicyPatch,
    },
    get(
        "/v1/stats",
        "stats_get",
        Endpoint::Stats,
        "Counters per shard, tier and namespace, and latencies",
        &[(200, Content::Stats), (503, Content::Problem)],
    ),
    Route {
        method: Method::POST,
        path: "/v1/purge",
        id: "purge_key",
        summary: "Removes one key from every tier, and says from which",
        body: Some(BodyRule { content_types: &[JSON], content: Content::PurgeRequest, bytes_max: PURGE_BYTES_MAX }),
        conditional: false,
        answers: &[(200, Content::PurgeReport), (404, Content::Problem), (503, Content::Problem)],
        endpoint: Endpoint::Purge,
    },
    get(
        "/v1/config",
        "config_get",
        Endpoint::Config,
        "Every setting with its value, origin and unit; secrets are hidden",
        &[(200, Content::Config)],
    ),
    get("/v1/build", "build_get", Endpoint::Build, "What was built", &[(200, Content::Build)]),
    get(
        "/metrics",
        "metrics_get",
        Endpoint::Metrics,
        "Counters and gauges as OpenMetrics text",
        &[(200, Content::Metrics), (503, Content::Problem)],
    ),
    get("/openapi.json", "openapi_get", Endpoint::OpenApi, "This description", &[(200, Content::OpenApi)]),
];

/// The served API: the node behind it, the bounds, and the router made from [`ROUTES`].
pub(crate) struct Door {
    pub(crate) control: Arc<dyn Control>,
    pub(crate) limits: Limits,
    router: matchit::Router<Vec<&'static Route>>,
}

impl Door {
    pub(crate) fn new(control: Arc<dyn Control>, limits: Limits) -> Self {
        let mut router: matchit::Router<Vec<&'static Route>> = matchit::Router::new();
        for route in &ROUTES {
            match router.at_mut(route.path) {
                Ok(at) => at.value.push(route),
                Err(_) => router.insert(route.path, vec![route]).expect("the table has no conflicting paths"),
            }
        }
        Self { control, limits, router }
    }

    /// Answers one request; never fails. What is left of its body is discarded within bounds, or the connection
    /// closes.
    pub(crate) async fn handle(&self, request: Request<Incoming>) -> Reply {
        let (parts, mut body) = request.into_parts();
        let mut reply = self.dispatch(&parts, &mut body).await;
        if !body.is_end_stream() {
            // Asking for the rest would invite what `Expect` holds back, and a late body was waited for enough.
            let wanted = !parts.headers.contains_key(header::EXPECT) && reply.status() != StatusCode::REQUEST_TIMEOUT;
            if !(wanted && body::discard(&mut body).await) {
                reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        reply
    }

    async fn dispatch(&self, parts: &Parts, body: &mut Incoming) -> Reply {
        let path = parts.uri.path();
        let Ok(found) = self.router.at(path) else {
            let detail = format!("nothing is served at {path}");
            return respond::problem(&refuse(StatusCode::NOT_FOUND, "no-such-path", detail));
        };
        let method = if parts.method == Method::HEAD { &Method::GET } else { &parts.method };
        if let Some(route) = found.value.iter().find(|route| route.method == *method) {
            return self.checked(route, parts, body).await.unwrap_or_else(|refusal| respond::problem(&refusal));
        }
        let allow = allow(found.value);
        let mut reply = if parts.method == Method::OPTIONS {
            respond::empty(StatusCode::NO_CONTENT)
        } else {
            let detail = format!("{path} takes {allow}, not {}", parts.method);
            respond::problem(&refuse(StatusCode::METHOD_NOT_ALLOWED, "method", detail))
        };
        let allow = HeaderValue::try_from(allow).expect("method names are valid in a header");
        reply.headers_mut().insert(header::ALLOW, allow);
        if found.value.iter().any(|route| route.method == Method::PATCH) {
            let types = HeaderValue::try_from(POLICY_PATCH_TYPES.join(", ")).expect("media types are valid");
            reply.headers_mut().insert("accept-patch", types);
        }
        reply
    }

    async fn checked(&self, route: &Route, parts: &Parts, body: &mut Incoming) -> Result<Reply, Refusal> {
        let bytes = match &route.body {
            None => Bytes::new(),
            Some(rule) => {
                body::same_origin(&parts.headers)?;
                body::content_type(&parts.headers, rule.content_types)?;
                body::read(body, rule.bytes_max, self.limits.body_timeout).await?
            }
        };
        self.answer(route.endpoint, parts, &bytes).await
    }

    async fn answer(&self, endpoint: Endpoint, parts: &Parts, body: &[u8]) -> Result<Reply, Refusal> {
        let control = &*self.control;
        let ok = StatusCode::OK;
        Ok(match endpoint {
            Endpoint::Dashboard => dashboard::page(),
            Endpoint::Live => health(control, |view| view.live),
            Endpoint::Ready => health(control, |view| view.live && view.ready),
            Endpoint::PolicyGet => policy::get(control, &parts.headers)?,
            Endpoint::PolicyPut => policy::replace(self, &parts.headers, body).await?,
            Endpoint::PolicyPatch => policy::patch(self, &parts.headers, body).await?,
            Endpoint::Stats => respond::json(ok, &self.stats().await?),
            Endpoint::Purge => purge::key(self, body).await?,
            Endpoint::Config => respond::json(ok, &mask::config(control.config())),
            Endpoint::Build => respond::json(ok, &control.build()),
            Endpoint::Metrics => {
                let stats = self.stats().await?;
                respond::body(ok, metrics::CONTENT_TYPE, metrics::text(stats, control.health(), control.build()))
            }
            Endpoint::OpenApi => respond::json(ok, &openapi::document(control)),
        })
    }

    /// Waits for the node, but not for ever (503).
    pub(crate) async fn wait<T>(&self, answer: impl Future<Output = T>) -> Result<T, Refusal> {
        let timeout = self.limits.answer_timeout;
        tokio::time::timeout(timeout, answer).await.map_err(|_| {
            let waited = timeout.as_millis();
            let detail = format!("the node did not answer within {waited} ms; a change may still take effect");
            refuse(StatusCode::SERVICE_UNAVAILABLE, "timeout", detail)
        })
    }

    async fn stats(&self) -> Result<StatsView, Refusal> {
        self.wait(self.control.stats()).await?.map_err(|Unavailable(detail)| respond::unavailable(detail))
    }
}

fn health(control: &dyn Control, good: impl FnOnce(&HealthView) -> bool) -> Reply {
    let view = HealthView::from(control.health());
    let status = if good(&view) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    respond::json(status, &view)
}

fn allow(routes: &[&Route]) -> String {
    let mut methods: Vec<&str> = routes.iter().map(|route| route.method.as_str()).collect();
    if methods.contains(&"GET") {
        methods.push("HEAD");
    }
    methods.push("OPTIONS");
    methods.join(", ")
}
