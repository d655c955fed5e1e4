//! What the process asks of its host: locked memory, credentials, mounting,
//! limits. With `backing`, the only module that may contain `unsafe`.

pub mod creds;
pub mod secret;
