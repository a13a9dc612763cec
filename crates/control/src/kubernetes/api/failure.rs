//! What can go wrong between us and the API server, and what follows from it.

use std::time::Duration;

/// Why a request, or a stream of events, came to an end. The words are for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// What says where the API server is, or who we are, cannot be read.
    #[error("{0}")]
    Access(String),
    /// Nobody answers at the address.
    #[error("cannot connect to {to}: {why}")]
    Connect { to: String, why: String },
    #[error("cannot connect to {to}: tls: {why}")]
    Tls { to: String, why: String },
    /// The connection broke.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// Nothing came in so long a time.
    #[error("the API server said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    /// 410: what was asked about is too long ago.
    #[error("the API server does not remember so far back: {0}")]
    Gone(String),
    /// 504: it does not know yet, or not any more, what we know.
    #[error("the API server knows less than this node: {0}")]
    Behind(String),
    /// A list that is older than what is held.
    #[error("the API server listed an older state ({listed}) than it has told before ({held})")]
    Older { listed: String, held: String },
    /// A list that ends before its end.
    #[error("the API server did not list everything: {0}")]
    Partial(String),
    /// 401, 403.
    #[error("{}: {message}", if *.code == 401 { "not let in (401)" } else { "not allowed (403)" })]
    Denied { code: u16, message: String },
    /// 429, 5xx: later.
    #[error("the API server asks for patience ({code}): {message}")]
    Busy { code: u16, message: String, after: Option<Duration> },
    /// Any other answer.
    #[error("the API server refused ({code}): {message}")]
    Refused { code: u16, message: String },
    /// An answer that is not what was asked for.
    #[error("the API server's answer is not understood: {0}")]
    Malformed(String),
}

impl Failure {
    /// One word, for metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Access(_) => "access",
            Self::Connect { .. } => "connect",
            Self::Tls { .. } => "tls",
            Self::Lost(_) => "lost",
            Self::Silent(_) => "silent",
            Self::Gone(_) => "gone",
            Self::Behind(_) => "behind",
            Self::Older { .. } => "older",
            Self::Partial(_) => "partial",
            Self::Denied { .. } => "denied",
            Self::Busy { .. } => "busy",
            Self::Refused { .. } => "refused",
            Self::Malformed(_) => "malformed",
        }
    }

    /// Whether the connection may be used again.
    pub const fn spares_connection(&self) -> bool {
        matches!(self, Self::Gone(_) | Self::Behind(_) | Self::Older { .. } | Self::Busy { .. })
    }

    /// From the status of an answer and what came with it: a `Status` object (meta/v1), or some text.
    pub fn of(code: u16, status: &Status, after: Option<Duration>) -> Self {
        let message = status.words();
        let after = after.or(status.details.retry_after_seconds.map(Duration::from_secs));
        match code {
            410 => Self::Gone(message),
            // "Too large resource version": as an answer, and in the stream.
            500 | 504 if status.is_about_versions() => Self::Behind(message),
            401 | 403 => Self::Denied { code, message },
            // 409: somebody else wrote at the same time.
            409 | 429 | 500..=599 => Self::Busy { code, message, after },
            _ if status.reason == "Expired" || status.reason == "Gone" => Self::Gone(message),
            _ => Self::Refused { code, message },
        }
    }
}

/// `Status` (meta/v1), as far as it is read.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status {
    pub code: u16,
    pub reason: String,
    pub message: String,
    pub details: Details,
}

#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Details {
    pub retry_after_seconds: Option<u64>,
    pub causes: Vec<Cause>,
}

#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Cause {
    pub reason: String,
}

/// The longest message of somebody else's that is shown, in characters.
const LONGEST: usize = 300;

impl Status {
    /// From the body of an answer that is no success.
    pub fn of(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_else(|_| Self {
            message: String::from_utf8_lossy(body.get(..4 * LONGEST).unwrap_or(body)).into_owned(),
            ..Self::default()
        })
    }

    fn is_about_versions(&self) -> bool {
        self.message.contains("Too large resource version")
            || self.details.causes.iter().any(|cause| cause.reason == "ResourceVersionTooLarge")
    }

    /// In one line, without what does not belong into a log.
    fn words(&self) -> String {
        let message = if self.message.is_empty() { &self.reason } else { &self.message };
        let mut words = String::new();
        for c in message.trim().chars().take(LONGEST) {
            words.push(if c.is_control() { ' ' } else { c });
        }
        if words.is_empty() { "no reason given".to_owned() } else { words }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_their_meaning() {
        let status = |text: &str| Status::of(text.as_bytes());
        let of = |code, text: &str| Failure::of(code, &status(text), None);
        assert_eq!(of(410, r#"{"message":"too old"}"#), Failure::Gone("too old".into()));
        let cause = r#"{"reason":"Timeout","details":{"causes":[{"reason":"ResourceVersionTooLarge"}]}}"#;
        assert_eq!(of(504, cause), Failure::Behind("Timeout".into()));
        assert_eq!(of(504, "gateway timeout").reason(), "busy", "somebody in between says so");
        let late = r#"{"message":"Timeout: Too large resource version: 9, current: 1"}"#;
        assert_eq!(of(500, late).reason(), "behind");
        let busy = of(429, r#"{"message":"slow\ndown","details":{"retryAfterSeconds":7}}"#);
        let after = Some(Duration::from_secs(7));
        assert_eq!(busy, Failure::Busy { code: 429, message: "slow down".into(), after });
        let denied = of(403, r#"{"message":"nodes is forbidden"}"#);
        assert_eq!(denied.to_string(), "not allowed (403): nodes is forbidden");
        assert_eq!(of(502, "<html>bad gateway</html>").reason(), "busy");
        assert_eq!(of(400, "").to_string(), "the API server refused (400): no reason given");
        assert_eq!(of(400, r#"{"reason":"Expired"}"#).reason(), "gone");
    }
}
