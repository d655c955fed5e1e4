//! What gives tokens: Entra, the metadata service, an App Service.

use serde_json::json;

use super::{RESOURCE, World, reply};
use crate::kms_servers::http::{Reply, Request};
use crate::kms_servers::tokens::form;

pub const TENANT: &str = "72f988bf-0000-0000-0000-2d7cd011db47";
pub const CLIENT: &str = "test-client";
pub const SECRET: &str = "test-client-secret";
/// What the other identity provider gives out.
pub const ASSERTION: &str = "test-assertion";
pub const IDENTITY_HEADER: &str = "test-identity-header";

/// Answers a request for a token.
pub(super) fn handle(world: &mut World, request: &Request) -> Reply {
    let query = form(request.query.as_bytes());
    let is = |name: &str, value: &str| query.get(name).is_some_and(|found| found == value);
    match request.path.as_str() {
        "/metadata/identity/oauth2/token" => {
            world.logins.push("metadata");
            let right = request.header("metadata") == "true" && is("api-version", "2018-02-01");
            if query.get("client_id").is_some_and(|id| id != CLIENT) {
                let text = "Identity not found";
                let body = json!({ "error": "invalid_request", "error_description": text });
                return reply(400, &body);
            }
            match right && is("resource", RESOURCE) {
                true => grant(world, true),
                false => refuse("invalid_request", "bad request"),
            }
        }
        "/msi/token" => {
            world.logins.push("app-service");
            let right = request.header("x-identity-header") == IDENTITY_HEADER
                && is("api-version", "2019-08-01")
                && is("resource", RESOURCE);
            match right {
                true => grant(world, true),
                false => refuse("invalid_request", "bad request"),
            }
        }
        path if path == format!("/{TENANT}/oauth2/v2.0/token") => entra(world, request),
        _ => refuse("invalid_request", "AADSTS90002: Tenant not found."),
    }
}

fn entra(world: &mut World, request: &Request) -> Reply {
    let fields = form(&request.body);
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    let by_secret = !field("client_secret").is_empty();
    world
        .logins
        .push(if by_secret { "secret" } else { "assertion" });
    if field("grant_type") != "client_credentials" || field("client_id") != CLIENT {
        return refuse(
            "unauthorized_client",
            "AADSTS700016: Application not found.",
        );
    }
    if field("scope") != format!("{RESOURCE}/.default") {
        return refuse("invalid_scope", "AADSTS70011: The scope is not valid.");
    }
    let proven = match by_secret {
        true => field("client_secret") == SECRET,
        false => {
            field("client_assertion_type")
                == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
                && field("client_assertion") == ASSERTION
        }
    };
    match proven {
        true => grant(world, false),
        false => refuse(
            "invalid_client",
            "AADSTS7000215: Invalid client secret provided.",
        ),
    }
}

/// A token; the metadata service puts numbers into strings.
fn grant(world: &mut World, strings: bool) -> Reply {
    let seconds = world.lifetime;
    let text = world.tokens.issue(RESOURCE, seconds);
    let lasts = match strings {
        true => json!(seconds.to_string()),
        false => json!(seconds),
    };
    reply(
        200,
        &json!({ "token_type": "Bearer", "expires_in": lasts, "access_token": text }),
    )
}

fn refuse(error: &str, description: &str) -> Reply {
    reply(
        401,
        &json!({ "error": error, "error_description": description }),
    )
}
