//! Keys at real key management services.
//!
//! One folder a service, each behind a cargo feature of its name: its wire
//! format, its credentials and its errors. The URIs are understood by every
//! build, so that one that lacks a service can say so. Those over HTTP share the
//! client in `http`, where asynchrony begins and ends: every call in here blocks
//! its caller.

pub mod alibaba;
pub mod aws;
pub mod azure;
#[cfg(any(feature = "azure", feature = "gcp"))]
mod bearer;
#[cfg(any(feature = "azure", feature = "pkcs11"))]
mod bound;
#[cfg(feature = "kms-http")]
#[cfg_attr(not(feature = "alibaba"), allow(dead_code))]
mod environment;
pub mod exec;
#[cfg(any(feature = "alibaba", feature = "azure", feature = "gcp"))]
mod form;
pub mod gcp;
pub mod hashivault;
#[cfg(feature = "kms-http")]
mod http;
pub mod kmip;
#[cfg(feature = "kms-http")]
mod lease;
pub mod pkcs11;
#[cfg(any(feature = "kms-http", feature = "kmip"))]
mod printable;
// Of the services that are always there, none tries again by itself.
#[cfg_attr(not(feature = "kms-http"), allow(dead_code))]
mod retry;
mod secret_text;
mod server;
pub mod service;
#[cfg(feature = "kms-http")]
#[cfg_attr(not(feature = "alibaba"), allow(dead_code))]
mod time;
mod uri;
