//! `GET /openapi.json`: what every route takes and answers, made out of the routes themselves.
//!
//! A route comes into the router together with its description ([`Routes::add`]), and address and
//! method are the description's own: neither can be there without the other. Schemas come from the
//! types that are answered, problems from the table of slugs. `docs/openapi.json` is this document
//! checked in; a test compares the two, and others hold every answer they get against it.
//!
//! Pure; the document is made when it is first asked for.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, on};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::{Map, Value, json};
use utoipa::__dev::{SchemaReferences, Tags};
use utoipa::openapi::path::HttpMethod;
use utoipa::openapi::schema::{ObjectBuilder, Schema};
use utoipa::{PartialSchema, Path, ToSchema};

use crate::config::Scope;

use super::admin::{self, Answered, Shared};
use super::auth::Need;
use super::problem::{Answer, Document, ItemError, Slug};

/// Routes and what is said of them.
#[derive(Default)]
pub(super) struct Routes {
    router: Router<Shared>,
    /// By address, then by method.
    paths: BTreeMap<String, Map<String, Value>>,
    schemas: BTreeMap<String, Value>,
    /// Addresses that the router knows.
    #[cfg(test)]
    pub(super) served: std::collections::BTreeSet<String>,
}

/// What `#[utoipa::path]` makes beside a function: `__path_<its name>`.
pub(super) trait Description: Path + SchemaReferences + for<'t> Tags<'t> {}

impl<P: Path + SchemaReferences + for<'t> Tags<'t>> Description for P {}

/// The problems a route may answer, each with its status.
pub(super) type Problems = Vec<(StatusCode, Slug)>;

/// Problems with the status of their slug.
pub(super) fn problems(slugs: &[Slug]) -> Problems {
    slugs.iter().map(|slug| (slug.status(), *slug)).collect()
}

/// Problems that are answered 503, whatever the status of their slug.
pub(super) fn unavailable(slugs: &[Slug]) -> Problems {
    slugs.iter().map(|slug| (StatusCode::SERVICE_UNAVAILABLE, *slug)).collect()
}

/// What any route may answer: something is broken, or there is one connection too many.
const ANYWHERE: [Slug; 2] = [Slug::Internal, Slug::Overloaded];

impl Routes {
    /// A route.
    pub fn add<P, H, T>(self, described: P, handler: H, problems: Problems) -> Self
    where
        P: Description,
        H: Handler<T, Shared>,
        T: 'static,
    {
        let methods = P::methods().into_iter().map(filter).reduce(MethodFilter::or);
        let filter = methods.expect("a description has a method");
        self.serve(&P::path(), on(filter, handler)).describe(described, problems)
    }

    /// The description of what is answered elsewhere.
    pub fn describe<P: Description>(mut self, _: P, problems: Problems) -> Self {
        let mut operation = json_of(&P::operation());
        operation["tags"] = json_of(&P::tags());
        let item = self.paths.entry(P::path()).or_default();
        for method in P::methods() {
            let scope = scope(&method, &P::path());
            let denied: &[Slug] =
                if scope.is_some() { &[Slug::Unauthenticated, Slug::Forbidden] } else { &[] };
            let problems = problems.iter().copied().chain(self::problems(denied));
            operation["responses"]
                .as_object_mut()
                .expect("responses are an object")
                .extend(answers(problems));
            // Where there are no tokens nobody is asked for one.
            operation["security"] =
                scope.map_or(json!([]), |scope| json!([{}, { "bearer": [scope.name()] }]));
            let before = item.insert(name(&method).to_owned(), operation.clone());
            debug_assert!(before.is_none(), "{} {} is described twice", name(&method), P::path());
        }
        let mut schemas = Vec::new();
        P::schemas(&mut schemas);
        self.schemas.extend(schemas.into_iter().map(|(name, schema)| (name, json_of(&schema))));
        self
    }

    /// A route without a description; [`Routes::describe`] gives one to each method it knows.
    pub fn serve(mut self, path: &str, methods: MethodRouter<Shared>) -> Self {
        self.router = self.router.route(path, methods);
        #[cfg(test)]
        self.served.insert(path.to_owned());
        self
    }

    /// The routes.
    pub fn into_router(self) -> Router<Shared> {
        self.router
    }

    /// The document: indented, members in alphabetical order, a line break at its end.
    pub fn document(mut self) -> String {
        self.schemas.insert(Document::name().into_owned(), json_of(&Document::schema()));
        self.schemas.insert(ItemError::name().into_owned(), json_of(&ItemError::schema()));
        self.schemas.insert(CloudEvent::name().into_owned(), cloud_event());
        self.schemas.insert(Change::name().into_owned(), change());
        let document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "EventFlow",
                "version": env!("CARGO_PKG_VERSION"),
                "summary": "A durable event daemon",
                "description": "What is answered 202 is on the disk, and stays until every sink has it. Errors are \
                    problem documents (RFC 9457); clients go by `type`, which is `/problems/` and a slug. A request \
                    that is no HTTP at all gets 400 or 431 without a document.",
                "license": { "name": "MIT OR Apache-2.0" },
            },
            "servers": [{ "url": "/" }],
            "tags": [
                { "name": "events", "description": "Events in, and where each of them is." },
                { "name": "health", "description": "Health, status and metrics." },
                { "name": "failures", "description": "Events that a sink did not take." },
                { "name": "sinks", "description": "Stopping and starting sinks." },
            ],
            "paths": self.paths,
            "components": {
                "schemas": self.schemas,
                "responses": shared_answers(),
                "securitySchemes": { "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `http.tokens_file`, and the scope it must have.",
                } },
            },
        });
        format!("{document:#}\n")
    }
}

/// A description of utoipa's as JSON.
fn json_of(described: &impl serde::Serialize) -> Value {
    serde_json::to_value(described).expect("descriptions are strings, numbers and maps of them")
}

fn name(method: &HttpMethod) -> &'static str {
    match method {
        HttpMethod::Get => "get",
        HttpMethod::Post => "post",
        HttpMethod::Put => "put",
        HttpMethod::Delete => "delete",
        HttpMethod::Options => "options",
        HttpMethod::Head => "head",
        HttpMethod::Patch => "patch",
        HttpMethod::Trace => "trace",
    }
}

/// The scope that a token must have, by the same rule that the requests meet.
fn scope(method: &HttpMethod, path: &str) -> Option<Scope> {
    let method = Method::from_bytes(name(method).to_ascii_uppercase().as_bytes()).expect("a method's name");
    match Need::of(&method, path) {
        Need::Token(scope) => Some(scope),
        Need::Nothing | Need::Signature => None,
    }
}

fn filter(method: HttpMethod) -> MethodFilter {
    match method {
        HttpMethod::Get => MethodFilter::GET,
        HttpMethod::Post => MethodFilter::POST,
        HttpMethod::Put => MethodFilter::PUT,
        HttpMethod::Delete => MethodFilter::DELETE,
        HttpMethod::Options => MethodFilter::OPTIONS,
        HttpMethod::Head => MethodFilter::HEAD,
        HttpMethod::Patch => MethodFilter::PATCH,
        HttpMethod::Trace => MethodFilter::TRACE,
    }
}

/// One answer a status, with the slugs that have it.
fn answers(problems: impl Iterator<Item = (StatusCode, Slug)>) -> impl Iterator<Item = (String, Value)> {
    let mut by_status: BTreeMap<StatusCode, Vec<Slug>> = BTreeMap::new();
    for (status, slug) in ANYWHERE.iter().map(|slug| (slug.status(), *slug)).chain(problems) {
        let slugs = by_status.entry(status).or_default();
        if !slugs.contains(&slug) {
            slugs.push(slug);
        }
    }
    by_status.into_iter().map(|(status, slugs)| {
        let answer = match slugs[..] {
            [slug] if slug.status() == status => {
                json!({ "$ref": format!("#/components/responses/{}", slug.name()) })
            }
            _ => answer(status, &slugs),
        };
        (status.as_str().to_owned(), answer)
    })
}

/// The answer of each slug, for where it is the only one of its status.
fn shared_answers() -> Map<String, Value> {
    Slug::ALL.iter().map(|slug| (slug.name().to_owned(), answer(slug.status(), &[*slug]))).collect()
}

fn answer(status: StatusCode, slugs: &[Slug]) -> Value {
    let told: Vec<String> = slugs.iter().map(|slug| format!("`{}`: {}", slug.name(), slug.title())).collect();
    let types: Vec<String> = slugs.iter().map(|slug| slug.as_type()).collect();
    let schema = json!({
        "allOf": [{ "$ref": "#/components/schemas/Problem" }],
        "properties": { "type": { "enum": types }, "status": { "const": status.as_u16() } },
    });
    let mut answer = json!({
        "description": told.join("; "),
        "content": { "application/problem+json": { "schema": schema } },
    });
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        let schema = json!({ "type": "integer", "minimum": 1 });
        answer["headers"] = json!({
            "Retry-After": { "description": "Whole seconds to wait.", "required": true, "schema": schema },
        });
    }
    answer
}

/// A string out of a list.
pub(super) fn one_of<const N: usize>(names: [&'static str; N]) -> Schema {
    ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::Type::String)
        .enum_values(Some(names))
        .build()
        .into()
}

/// Characters that a CloudEvents string may hold, as far as one expression can say it.
const TEXT: &str = r"^[^\u0000-\u001f\u007f-\u009f\ufdd0-\ufdef\ufffe\uffff]*$";

/// Base64 of RFC 4648, section 4, with nothing in it that a decoder would have to overlook.
const BASE64: &str = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$";

/// Stands for what [`change`] describes.
#[derive(ToSchema)]
pub(super) struct Change {}

/// The body of a change to rows of the failure table. By hand, because a derived schema cannot say
/// that either offsets are named or all are meant.
fn change() -> Value {
    let offset = json!({ "type": "integer", "format": "int64", "minimum": 0 });
    json!({
        "type": "object",
        "description": "Some rows of a sink, or all of them.",
        "required": ["sink"],
        "properties": {
            "sink": { "type": "string" },
            "offsets": { "description": "These rows; at most 10,000.", "type": "array", "items": offset },
            "all": { "description": "Every row of the sink.", "type": "boolean" },
        },
        "additionalProperties": false,
        "oneOf": [
            { "required": ["offsets"], "properties": { "all": { "const": false } } },
            { "required": ["all"], "properties": { "all": { "const": true }, "offsets": false } },
        ],
    })
}

/// Stands for an event where a schema refers to one.
#[derive(ToSchema)]
pub(super) struct CloudEvent {}

/// What the specification 1.0.2 asks of an event, as far as a schema can say it. By hand, because no
/// type stands behind it: an event is kept as text.
fn cloud_event() -> Value {
    let text = |types: Value| json!({ "type": types, "minLength": 1, "pattern": TEXT });
    let (required, optional) = (text(json!("string")), text(json!(["string", "null"])));
    json!({
        "type": "object",
        "description": "A CloudEvent 1.0 in its JSON format. Members not named here are extension attributes.",
        "required": ["specversion", "id", "source", "type"],
        "properties": {
            "specversion": { "const": "1.0" },
            "id": required,
            "source": required,
            "type": required,
            "time": { "type": ["string", "null"], "format": "date-time" },
            "subject": optional,
            "dataschema": optional,
            "datacontenttype": optional,
            "data": { "description": "Any JSON; kept byte for byte. Not beside `data_base64`." },
            "data_base64": { "type": ["string", "null"], "contentEncoding": "base64", "pattern": BASE64 },
        },
        "propertyNames": { "pattern": "^([a-z0-9]+|data_base64)$" },
        "not": { "required": ["data", "data_base64"] },
        "additionalProperties": {
            "type": ["string", "boolean", "integer", "null"],
            "minimum": i32::MIN,
            "maximum": i32::MAX,
            "pattern": TEXT,
        },
    })
}

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(admin::routes().document()));

/// This description.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "health",
    responses((status = 200, description = "An OpenAPI 3.1 document.", content_type = "application/json", body = Object))
)]
pub(super) async fn openapi() -> Answered {
    let mut answer = Answer::new(Full::new(DOCUMENT.clone()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(answer)
}
