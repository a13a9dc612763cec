//! Files that tell a program where the API server is and who the program is.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{Result, write};
use crate::pki::Pair;

/// By what a program is known to the API server.
#[derive(Clone, Copy, Debug)]
pub enum Credentials<'a> {
    /// A client certificate.
    Pair(&'a Pair),
    /// A service account's token.
    Token(&'a str),
    /// A file with such a token, read again when it changes.
    TokenFile(&'a Path),
}

/// Writes `file`. `server` is `https://HOST:PORT`, `ca` the certificate that the server is checked against.
///
/// # Errors
/// When it cannot be written.
pub fn write_to(file: PathBuf, server: &str, ca: &Path, credentials: Credentials<'_>) -> Result<PathBuf> {
    let user: Value = match credentials {
        Credentials::Pair(pair) => json!({ "client-certificate": pair.certificate, "client-key": pair.key }),
        Credentials::Token(token) => json!({ "token": token }),
        Credentials::TokenFile(file) => json!({ "tokenFile": file }),
    };
    // JSON is YAML.
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{ "name": "lab", "cluster": { "server": server, "certificate-authority": ca } }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
        "users": [{ "name": "lab", "user": user }],
    });
    write(&file, config.to_string())?;
    Ok(file)
}
