//! `/openapi.json`: OpenAPI 3.1, made from [`ROUTES`] and the schemas of [`crate::view`].

use std::collections::{BTreeMap, BTreeSet};

use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::{
    ToSchema,
    openapi::{
        ComponentsBuilder, ContentBuilder, HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, Paths, Ref, RefOr,
        Required, ResponseBuilder, ServerBuilder,
        header::{Header, HeaderBuilder},
        path::{Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn},
        request_body::RequestBodyBuilder,
        schema::{ObjectBuilder, Schema, Type},
    },
};

use crate::{
    control::Control,
    metrics,
    respond::{self, JSON, PROBLEM_JSON},
    routes::{Content, ROUTES, Route},
    view::{
        BuildView, CommitsView, ConfigView, DoorView, HealthStatus, HealthView, LatencyView, MemoryView, NamespaceMode,
        NamespaceTierView, NamespaceView, Origin, Problem, PurgeOutcome, PurgeReport, PurgeRequest, PurgeTierView,
        ReasonView, SettingView, ShardView, StatsView, TierView, TiersView, TotalsView,
    },
};

type Named = (String, RefOr<Schema>);

/// Describes this node: its version is that of the build, the example of a policy is the one in effect.
pub(crate) fn document(control: &dyn Control) -> OpenApi {
    let policy = control.policy().document;
    let mut paths = Paths::new();
    for route in &ROUTES {
        paths.add_path_operation(route.path, vec![method(&route.method)], operation(route, &policy));
    }
    let description = "Policy, counters, purge and health of one Strata node. Every path that takes GET takes HEAD \
                       and OPTIONS too. Errors are problem details (RFC 9457); `reason` tells them apart.";
    let build = control.build();
    OpenApiBuilder::new()
        .info(InfoBuilder::new().title("Strata admin").version(build.version).description(Some(description)).build())
        .servers(Some([ServerBuilder::new().url("/").build()]))
        .paths(paths)
        .components(Some(ComponentsBuilder::new().schemas_from_iter(schemas()).build()))
        .build()
}

fn method(method: &Method) -> HttpMethod {
    match *method {
        Method::PUT => HttpMethod::Put,
        Method::PATCH => HttpMethod::Patch,
        Method::POST => HttpMethod::Post,
        _ => HttpMethod::Get,
    }
}

fn operation(route: &Route, policy: &Value) -> Operation {
    let mut operation = OperationBuilder::new().operation_id(Some(route.id)).summary(Some(route.summary));
    if route.conditional {
        operation = operation.parameter(precondition("If-Match")).parameter(precondition("If-None-Match"));
    }
    operation = operation.request_body(route.body.as_ref().map(|rule| {
        let mut body = RequestBodyBuilder::new().required(Some(Required::True));
        body = body.description(Some(format!("At most {} bytes.", rule.bytes_max)));
        for content_type in rule.content_types {
            body = body.content(*content_type, content(rule.content, policy));
        }
        body.build()
    }));
    let problems = problems(route).into_iter().map(|status| (status, Content::Problem));
    for (status, answer) in route.answers.iter().copied().chain(problems) {
        let phrase = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let mut response = ResponseBuilder::new().description(phrase.unwrap_or_default());
        if let Some(content_type) = content_type(answer) {
            response = response.content(content_type, content(answer, policy));
        }
        if answer == Content::Policy || status == 304 {
            response = response.header("ETag", entity_tag());
        }
        operation = operation.response(status.to_string(), response.build());
    }
    operation.build()
}

/// What the shape of a route makes it answer when it is asked wrongly.
fn problems(route: &Route) -> BTreeSet<u16> {
    let mut statuses = BTreeSet::new();
    if route.conditional {
        statuses.extend([400, 412]);
    }
    if route.body.is_some() {
        statuses.extend([400, 403, 408, 413, 415, 422]);
        if route.conditional {
            statuses.insert(409);
        }
    }
    for (status, _) in route.answers {
        statuses.remove(status);
    }
    statuses
}

fn precondition(name: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("`*` or a list of entity tags; the tag of version 7 is `\"7\"`."))
        .schema(Some(text()))
        .example(Some(json!("\"7\"")))
        .build()
}

fn entity_tag() -> Header {
    HeaderBuilder::new().description(Some("Version of the policy, quoted.")).schema(Some(text())).build()
}

fn text() -> Schema {
    Schema::Object(ObjectBuilder::new().schema_type(Type::String).build())
}

fn content_type(content: Content) -> Option<&'static str> {
    match content {
        Content::Empty => None,
        Content::Problem => Some(PROBLEM_JSON),
        Content::Metrics => Some(metrics::CONTENT_TYPE),
        Content::Page => Some("text/html; charset=utf-8"),
        _ => Some(JSON),
    }
}

fn content(content: Content, policy: &Value) -> utoipa::openapi::Content {
    let (schema, example): (RefOr<Schema>, Option<Value>) = match content {
        Content::Policy => (named("Policy"), Some(policy.clone())),
        Content::PolicyPatch => (named("Policy"), Some(json!({"l0_max": "1MiB"}))),
        Content::Health => (named("HealthView"), Some(example(&health()))),
        Content::Build => (named("BuildView"), Some(example(&build()))),
        Content::Config => (named("ConfigView"), Some(example(&config()))),
        Content::Stats => (named("StatsView"), Some(example(&stats()))),
        Content::PurgeRequest => (named("PurgeRequest"), Some(example(&purge_request()))),
        Content::PurgeReport => (named("PurgeReport"), Some(example(&purge_report()))),
        Content::Problem => (named("Problem"), Some(example(&problem()))),
        Content::OpenApi => (ObjectBuilder::new().into(), None),
        Content::Metrics => (text().into(), Some(json!("# TYPE strata_hits counter\n# EOF\n"))),
        Content::Page | Content::Empty => (text().into(), None),
    };
    ContentBuilder::new().schema(Some(schema)).example(example).build()
}

fn named(name: &str) -> RefOr<Schema> {
    Ref::from_schema_name(name).into()
}

fn schemas() -> Vec<Named> {
    fn collect<T: ToSchema>(schemas: &mut Vec<Named>) {
        schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(schemas);
    }
    let mut schemas = Vec::new();
    collect::<HealthView>(&mut schemas);
    collect::<BuildView>(&mut schemas);
    collect::<ConfigView>(&mut schemas);
    collect::<StatsView>(&mut schemas);
    collect::<PurgeRequest>(&mut schemas);
    collect::<PurgeReport>(&mut schemas);
    collect::<Problem>(&mut schemas);
    let policy = "A policy. The node defines its members; GET /v1/policy names them all. Sizes are integer bytes or \
                  text such as \"2MiB\"; null or \"none\" is unlimited, \
                  but null in a patch removes the member (RFC 7396), which puts it back to its default.";
    schemas.push(("Policy".to_owned(), ObjectBuilder::new().description(Some(policy)).into()));
    schemas
}

fn example(view: &impl Serialize) -> Value {
    serde_json::to_value(view).expect("views have string keys and no failing serialiser")
}

fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

fn health() -> HealthView {
    let message = "shard 1: write to the flash log failed: Input/output error".to_owned();
    let reasons = vec![ReasonView { code: "tier-poisoned".to_owned(), message }];
    HealthView { status: HealthStatus::Degraded, live: true, ready: true, reasons }
}

fn build() -> BuildView {
    let revision = Some("0123abcd".to_owned());
    BuildView { name: "strata".to_owned(), version: "0.1.0".to_owned(), revision, profile: "release".to_owned() }
}

fn config() -> ConfigView {
    let setting = SettingView {
        name: "memory_max".to_owned(),
        value: json!(4_294_967_296_u64),
        origin: Origin::Environment,
        source: Some("STRATA_MEMORY_MAX".to_owned()),
        unit: Some("bytes".to_owned()),
        secret: false,
    };
    ConfigView { settings: vec![setting] }
}

fn stats() -> StatsView {
    let l0 = TierView {
        hits: 900,
        misses: 100,
        misses_by_reason: counts(&[("not-found", 97), ("expired", 3)]),
        writes: 40,
        bytes: Some(1 << 20),
        overhead_bytes: Some(9 << 20),
        capacity_bytes: Some(1 << 30),
        objects: Some(25),
        evictions: Some(12),
        promotions: Some(3),
        drops: counts(&[("gate", 3)]),
        ..TierView::default()
    };
    let tiers = TiersView { l0: Some(l0), ..TiersView::default() };
    let door = DoorView {
        answers: [("get", counts(&[("2xx", 960), ("4xx", 40)])), ("put", counts(&[("2xx", 10)]))]
            .map(|(op, classes)| (op.to_owned(), classes))
            .into(),
        refusals: counts(&[("body-cut", 1)]),
        connections_accepted: 17,
        ..DoorView::default()
    };
    let doors = BTreeMap::from([("http".to_owned(), door)]);
    let shards = vec![ShardView { connections: 2, requests: 1010, tiers, doors, ..ShardView::default() }];
    let durable = NamespaceTierView { bytes: Some(52_000), objects: Some(70), ..NamespaceTierView::default() };
    let namespace = NamespaceView {
        mode: NamespaceMode::Durable,
        hits: counts(&[("l0", 900), ("l3", 60)]),
        misses: counts(&[("not-found", 40)]),
        writes: 10,
        tiers: BTreeMap::from([("l3".to_owned(), durable)]),
        ..NamespaceView::default()
    };
    let namespaces = BTreeMap::from([("images".to_owned(), namespace)]);
    let latency = LatencyView {
        door: "http".to_owned(),
        op: "get".to_owned(),
        count: 1000,
        p50_us: 90,
        p90_us: 150,
        p99_us: 600,
        p999_us: 2_000,
        max_us: 9_000,
    };
    StatsView {
        version: "0.1.0".to_owned(),
        uptime_seconds: 3600,
        policy_version: 7,
        memory: MemoryView { max_bytes: 4 << 30, resident_bytes: Some(1 << 30) },
        totals: TotalsView::of(&shards, &namespaces),
        shards,
        namespaces,
        commits: Some(CommitsView { commits: 4, mutations: 10, sizes: [2, 2, 0, 0, 0] }),
        latency: vec![latency],
    }
}

fn purge_request() -> PurgeRequest {
    PurgeRequest { namespace: "images".to_owned(), key: "cats/1.jpg?w=200".to_owned() }
}

fn purge_report() -> PurgeReport {
    let PurgeRequest { namespace, key } = purge_request();
    let tier = |outcome| PurgeTierView { outcome };
    let tiers = [
        ("l0", PurgeOutcome::Removed),
        ("l1", PurgeOutcome::Off),
        ("l2", PurgeOutcome::Absent),
        ("l3", PurgeOutcome::Removed),
    ];
    PurgeReport { namespace, key, tiers: tiers.map(|(name, outcome)| (name.to_owned(), tier(outcome))).into() }
}

fn problem() -> Problem {
    *respond::invalid("/l0_max", "a size is an integer or text such as \"2MiB\"; found \"2MoB\"")
}
