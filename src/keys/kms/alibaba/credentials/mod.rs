//! Access keys and where they come from.
//!
//! The places are searched in the order of Alibaba Cloud's own SDKs. The first
//! one that is set up decides: if it then fails, that is an error, as going on
//! might find someone else's identity.

mod external;
mod files;
mod json;
mod remote;
mod search;
mod store;

use zeroize::Zeroizing;

pub(super) use store::CredentialStore;

/// An access key, perhaps a temporary one.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) id: String,
    pub(super) secret: Zeroizing<String>,
    pub(super) token: Option<Zeroizing<String>>,
    /// When it ends, in seconds since 1970.
    expires: Option<u64>,
}

impl Credentials {
    /// An access key that ends only when the service says so.
    pub(super) fn new(id: &str, secret: &str, token: Option<String>) -> Self {
        Self {
            id: id.to_owned(),
            secret: Zeroizing::new(secret.to_owned()),
            token: token.map(Zeroizing::new),
            expires: None,
        }
    }
}

/// Where an access key comes from.
#[derive(Clone)]
enum Source {
    /// It is known.
    Known(Credentials),
    /// STS gives one for a role to who has another.
    Role(Box<Source>, Role),
    /// STS gives one for a role to who has a token of an identity provider.
    Oidc {
        provider_arn: String,
        token_file: std::path::PathBuf,
        role: Role,
    },
    /// The metadata service of an ECS instance, or a URI if there is none.
    Metadata {
        role: Option<String>,
        otherwise: Option<String>,
    },
    /// A URI gives one to anyone who asks.
    Uri(String),
    /// A command prints one.
    Command(String),
    /// CloudSSO gives one to who has logged in.
    CloudSso {
        url: String,
        account: String,
        access: String,
        token: Zeroizing<String>,
    },
    /// The OAuth server gives one to who has logged in.
    OAuth {
        url: String,
        token: Zeroizing<String>,
    },
}

/// A role to assume.
#[derive(Clone, Default)]
struct Role {
    arn: String,
    session: Option<String>,
    seconds: Option<u64>,
    policy: Option<String>,
    external_id: Option<String>,
    region: Option<String>,
    vpc: Option<bool>,
}

#[cfg(test)]
mod tests;
