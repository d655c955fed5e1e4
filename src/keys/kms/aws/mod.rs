//! AWS KMS: `awskms://`.
//!
//! AWS's own SDK signs the calls and finds the credentials. Its requests go out
//! through the HTTP client that all services share (`transport`), so that what
//! holds for the others holds here: answers are bounded, nothing is redirected,
//! and deadlines and repeats are this program's own. `docs/KMS.md` says how to
//! set it up.

mod arn;
#[cfg(feature = "aws")]
mod fault;
#[cfg(feature = "aws")]
mod provider;
#[cfg(feature = "aws")]
mod session;
#[cfg(feature = "aws")]
mod transport;
mod uri;

use super::service::Service;

pub use arn::Key;
#[cfg(feature = "aws")]
pub use provider::AwsProvider;
pub use uri::AwsUri;

pub(super) const SERVICE: Service = Service {
    scheme: AwsUri::SCHEME,
    form: "awskms:///KEY",
    feature: "aws",
    check: |uri| AwsUri::parse(uri).map(drop),
    same_key: |mine, wrapped| {
        let both = AwsUri::parse(mine).ok().zip(AwsUri::parse(wrapped).ok());
        both.is_some_and(|(mine, theirs)| mine.key.is_same_as(&theirs.key))
    },
    #[cfg(feature = "aws")]
    open: Some(|uri, _| {
        let uri = AwsUri::parse(uri)?;
        Ok(std::sync::Arc::new(AwsProvider::open(&uri)?))
    }),
    #[cfg(not(feature = "aws"))]
    open: None,
};
