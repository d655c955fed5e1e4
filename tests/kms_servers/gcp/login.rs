//! What gives tokens, and to whom.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};

use super::{AUDIENCE, World, reply};
use crate::kms_servers::http::{Reply, Request};
use crate::kms_servers::tokens::{form, now};

/// What the other identity provider of the federation gives out.
pub const SUBJECT_TOKEN: &str = "test-subject-token";
const EMAIL: &str = "kmsfs@test.iam.gserviceaccount.com";
const KEY_ID: &str = "0123abcd";
const REFRESH: [(&str, &str); 3] = [
    ("client_id", "test-client"),
    ("client_secret", "test-client-secret"),
    ("refresh_token", "test-refresh-token"),
];
const POOL: &str =
    "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
const SCOPES: [&str; 2] = [
    "https://www.googleapis.com/auth/cloudkms",
    "https://www.googleapis.com/auth/cloud-platform",
];
/// A token that may only be changed for another.
const CHANGEABLE: &str = "impersonation";
/// What Google's clients write, wherever they send it.
const PUBLIC_AUDIENCE: &str = "https://oauth2.googleapis.com/token";
const HOUR: u64 = 3600;

/// A service account.
pub struct Identity {
    pair: RsaKeyPair,
    /// This server.
    pub origin: String,
}

impl Identity {
    pub fn new() -> Self {
        Self {
            pair: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            origin: String::new(),
        }
    }

    /// The file with the service account's key, as the console gives it out.
    pub fn service_account(&self) -> Value {
        let der: Pkcs8V1Der<'_> = self.pair.as_der().unwrap();
        let text = BASE64.encode(der.as_ref());
        let lines: Vec<&str> = (0..text.len())
            .step_by(64)
            .map(|at| &text[at..text.len().min(at + 64)])
            .collect();
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            lines.join("\n")
        );
        json!({
            "type": "service_account",
            "project_id": "test",
            "private_key_id": KEY_ID,
            "private_key": pem,
            "client_email": EMAIL,
            "client_id": "1",
            "token_uri": format!("{}/token", self.origin),
        })
    }

    /// The file that a login of a person leaves.
    pub fn authorized_user(&self) -> Value {
        let mut file = json!({
            "type": "authorized_user",
            "token_uri": format!("{}/token", self.origin),
        });
        for (name, value) in REFRESH {
            file[name] = value.into();
        }
        file
    }

    /// The file of a workload identity, whose token is in `token_file`.
    pub fn external_account(&self, token_file: &str, impersonated: bool) -> Value {
        let mut file = json!({
            "type": "external_account",
            "audience": POOL,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": format!("{}/sts", self.origin),
            "credential_source": { "file": token_file },
        });
        if impersonated {
            file["service_account_impersonation_url"] = self.impersonation_url().into();
        }
        file
    }

    /// The file of someone who acts as a service account.
    pub fn impersonated_service_account(&self) -> Value {
        json!({
            "type": "impersonated_service_account",
            "service_account_impersonation_url": self.impersonation_url(),
            "source_credentials": self.authorized_user(),
        })
    }

    fn impersonation_url(&self) -> String {
        format!("{}/impersonate/{EMAIL}:generateAccessToken", self.origin)
    }

    /// What is wrong with a signed assertion.
    fn check(&self, assertion: &str, now: u64) -> Result<(), &'static str> {
        let (signed, signature) = assertion.rsplit_once('.').ok_or("not a JWT")?;
        let (header, claims) = signed.split_once('.').ok_or("not a JWT")?;
        let decode = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).unwrap_or_default();
        let public = self.pair.public_key().as_ref();
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public)
            .verify(signed.as_bytes(), &decode(signature))
            .map_err(|_| "Invalid JWT Signature.")?;
        let header: Value = serde_json::from_slice(&decode(header)).map_err(|_| "not a JWT")?;
        let claims: Value = serde_json::from_slice(&decode(claims)).map_err(|_| "not a JWT")?;
        let time = |name: &str| claims[name].as_u64().unwrap_or(0);
        let (from, until) = (time("iat"), time("exp"));
        let scopes = claims["scope"].as_str().unwrap_or_default();
        let own = format!("{}/token", self.origin);
        match () {
            () if header["alg"] != "RS256" || header["kid"] != KEY_ID => Err("Invalid header."),
            () if claims["iss"] != EMAIL => Err("Invalid grant: account not found"),
            () if ![own.as_str(), PUBLIC_AUDIENCE]
                .contains(&claims["aud"].as_str().unwrap_or_default()) =>
            {
                Err("Invalid audience.")
            }
            () if !scopes.split(' ').all(|scope| SCOPES.contains(&scope)) => Err("invalid_scope"),
            () if until > from + HOUR || from > now + 10 || until < now => Err(
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable \
                 timeframe. Check your iat and exp values in the JWT claim.",
            ),
            () => Ok(()),
        }
    }
}

/// Answers what is no call about keys.
pub(super) fn handle(world: &mut World, request: &Request) -> Option<Reply> {
    let fields = form(&request.body);
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    let now = now().saturating_add_signed(world.clock);
    let mut reply = match request.path.as_str() {
        "/token" if field("grant_type") == "refresh_token" => {
            world.logins.push("refresh");
            match REFRESH.iter().all(|(name, value)| field(name) == *value) {
                true => grant(world, AUDIENCE),
                false => refuse("Token has been expired or revoked."),
            }
        }
        "/token" => {
            world.logins.push("assertion");
            match world.identity.check(field("assertion"), now) {
                _ if field("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" => {
                    refuse("unsupported_grant_type")
                }
                Ok(()) => grant(world, AUDIENCE),
                Err(problem) => refuse(problem),
            }
        }
        "/sts" => {
            world.logins.push("exchange");
            let right = field("grant_type") == "urn:ietf:params:oauth:grant-type:token-exchange"
                && field("audience") == POOL
                && field("subject_token_type") == "urn:ietf:params:oauth:token-type:jwt"
                && field("subject_token") == SUBJECT_TOKEN;
            match (right, field("scope")) {
                (true, scope) if scope == SCOPES[0] => grant(world, AUDIENCE),
                (true, scope) if scope == SCOPES[1] => grant(world, CHANGEABLE),
                _ => refuse("The subject token is not right."),
            }
        }
        path if path.starts_with("/impersonate/") => {
            world.logins.push("impersonate");
            let header = request.header("authorization");
            let known = [CHANGEABLE, AUDIENCE];
            if !known.iter().any(|who| world.tokens.accept(header, who)) {
                let error = json!({ "code": 403, "status": "PERMISSION_DENIED",
                    "message": "Permission 'iam.serviceAccounts.getAccessToken' denied" });
                return Some(super::reply(403, &json!({ "error": error })));
            }
            let text = world.tokens.issue(AUDIENCE, world.lifetime);
            // In the far future, so that it need not be computed.
            super::reply(
                200,
                &json!({ "accessToken": text, "expireTime": "2999-01-01T00:00:00Z" }),
            )
        }
        "/computeMetadata/v1/instance/service-accounts/default/token" => {
            world.logins.push("metadata");
            let mut reply = match request.header("metadata-flavor") {
                "Google" => grant(world, AUDIENCE),
                _ => super::reply(403, &json!({})),
            };
            reply.headers.push(("metadata-flavor", "Google".into()));
            reply
        }
        _ => return None,
    };
    let date = crate::kms_servers::alibaba::http_date(now);
    reply.headers.push(("date", date));
    Some(reply)
}

fn grant(world: &mut World, audience: &str) -> Reply {
    let text = world.tokens.issue(audience, world.lifetime);
    reply(
        200,
        &json!({ "access_token": text, "expires_in": world.lifetime, "token_type": "Bearer" }),
    )
}

fn refuse(problem: &str) -> Reply {
    reply(
        400,
        &json!({ "error": "invalid_grant", "error_description": problem }),
    )
}
