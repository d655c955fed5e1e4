//! Who calls: the SDK's credentials, and a client that signs with them.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::error::CredentialsError;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_kms::Client;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{
    AppName, BehaviorVersion, Builder, Credentials, IdentityCache, ProvideCredentials, Region,
    SharedCredentialsProvider, StalledStreamProtectionConfig,
};
use aws_sdk_kms::error::{ConnectorError, ErrorMetadata};
use aws_smithy_async::time::TimeSource;

use super::fault::Fault;
use super::transport::Transport;
use super::uri::AwsUri;
use crate::keys::KeyError;
use crate::keys::kms::http;
use crate::keys::kms::lease::Lease;
use crate::keys::kms::printable::printable;
use crate::keys::kms::time::ClockOffset;

/// How long before their end credentials are renewed.
const MARGIN: u64 = 300;
const HINT: &str = "log in with the AWS CLI, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
                    or name a profile with profile=; docs/KMS.md has the other ways";

/// A client, and the credentials that it signs with.
pub(super) struct Session {
    pub(super) client: Client,
    credentials: Credentials,
}

impl Session {
    fn expiry(&self) -> Option<u64> {
        let since = self.credentials.expiry()?.duration_since(UNIX_EPOCH);
        Some(since.unwrap_or_default().as_secs())
    }
}

impl Lease for Session {
    fn renewal(&self) -> Option<u64> {
        Some(self.expiry()?.saturating_sub(MARGIN))
    }

    fn end(&self) -> Option<u64> {
        self.expiry()
    }

    fn is_same_as(&self, other: &Self) -> bool {
        let (mine, theirs) = (&self.credentials, &other.credentials);
        mine.access_key_id() == theirs.access_key_id()
            && mine.secret_access_key() == theirs.secret_access_key()
            && mine.session_token() == theirs.session_token()
    }
}

/// How to get a session.
pub(super) struct Login {
    pub(super) uri: AwsUri,
    pub(super) transport: Transport,
    pub(super) clock: ServiceClock,
    /// The key the session is for, for errors.
    pub(super) key: String,
}

impl Login {
    /// Asks wherever the SDK looks for credentials, anew each time: files change.
    pub(super) fn log_in(&self, time: Duration) -> Result<Session, KeyError> {
        let session = http::wait(time, self.session());
        session.map_err(|error| error.about(&self.key, "the source of the credentials"))?
    }

    async fn session(&self) -> Result<Session, KeyError> {
        let uri = &self.uri;
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(self.transport.clone())
            .time_source(self.clock.clone())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Some(region) = uri.region() {
            loader = loader.region(Region::new(region.to_owned()));
        }
        if let Some(profile) = &uri.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(files) = self.files() {
            loader = loader.profile_files(files);
        }
        if uri.fips {
            loader = loader.use_fips(true);
        }
        let shared = loader.load().await;
        let region = shared.region().ok_or_else(|| KeyError::Configuration {
            detail: format!("the region of {} is not known", self.key),
            hint: Some("add region=REGION to the key uri, or set AWS_REGION".into()),
        })?;
        let chosen = self.chosen_profile(region);
        let provider = chosen.or_else(|| shared.credentials_provider());
        let provider = provider.ok_or_else(|| self.no_credentials("there is no source of them"))?;
        let credentials = provider.provide_credentials().await;
        let credentials = credentials.map_err(|error| self.refused(&error))?;
        let mut builder = Builder::from(&shared)
            .credentials_provider(credentials.clone())
            .identity_cache(IdentityCache::no_cache())
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .app_name(AppName::new("kmsfs").expect("letters are allowed"));
        if let Some(endpoint) = &uri.endpoint {
            builder = builder.endpoint_url(endpoint);
        }
        Ok(Session {
            client: Client::from_conf(builder.build()),
            credentials,
        })
    }

    /// A profile that the URI names comes before what the environment has.
    fn chosen_profile(&self, region: &Region) -> Option<SharedCredentialsProvider> {
        let files = self.files();
        if self.uri.profile.is_none() && files.is_none() {
            return None;
        }
        let config = ProviderConfig::without_region()
            .with_region(Some(region.clone()))
            .with_http_client(self.transport.clone())
            .with_time_source(self.clock.clone());
        let mut builder = ProfileFileCredentialsProvider::builder().configure(&config);
        if let Some(profile) = &self.uri.profile {
            builder = builder.profile_name(profile);
        }
        if let Some(files) = files {
            builder = builder.profile_files(files);
        }
        Some(SharedCredentialsProvider::new(builder.build()))
    }

    fn files(&self) -> Option<EnvConfigFiles> {
        let file = self.uri.credentials_file.as_ref()?;
        let files = EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file);
        Some(files.build())
    }

    fn no_credentials(&self, problem: &str) -> KeyError {
        KeyError::Configuration {
            detail: format!("no AWS credentials for {}: {problem}", self.key),
            hint: Some(HINT.into()),
        }
    }

    fn refused(&self, error: &CredentialsError) -> KeyError {
        let (detail, metadata, unreachable) = innermost(error);
        match error {
            CredentialsError::CredentialsNotLoaded(_)
            | CredentialsError::InvalidConfiguration(_) => self.no_credentials(&detail),
            _ => match metadata {
                // What STS or a login service has said.
                Some(metadata) if !unreachable => Fault::of_login(metadata).about_login(&self.key),
                _ => KeyError::Unavailable {
                    key: self.key.clone(),
                    detail: format!("no credentials: {detail}"),
                },
            },
        }
    }
}

/// The cause of an error in words, what a service has said, and whether it could
/// not be reached.
fn innermost<'a>(error: &'a (dyn Error + 'static)) -> (String, Option<&'a ErrorMetadata>, bool) {
    let mut last = error;
    let (mut metadata, mut unreachable) = (None, false);
    while let Some(cause) = last.source() {
        metadata = metadata.or(cause.downcast_ref());
        unreachable |= cause.is::<ConnectorError>();
        last = cause;
    }
    (printable(&last.to_string()), metadata, unreachable)
}

/// The service's clock, which signatures have to agree with.
#[derive(Clone, Default)]
pub(super) struct ServiceClock(Arc<ClockOffset>);

impl ServiceClock {
    /// Believes the date of an answer and says whether that changes much.
    pub(super) fn correct(&self, server: u64) -> bool {
        self.0.correct(server)
    }
}

impl fmt::Debug for ServiceClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceClock")
    }
}

impl TimeSource for ServiceClock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0.now())
    }
}
