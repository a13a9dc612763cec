//! Where the API server is, and who we are to it.
//!
//! All of it is read anew for every connection: the kubeconfig and the files that it names (CA, client certificate and
//! key, token), or those of the service account. Whoever renews them needs to tell nobody. What cannot be read while it
//! is being renewed is taken as it was.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderValue;
use kube::Config;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use secrecy::ExposeSecret as _;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};

use super::failure::Failure;

/// Where a pod finds the credentials of its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// An address of an API server: `https://10.0.0.1:6443`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url(http::Uri);

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: http::Uri = text.parse().map_err(|error| format!("{error}"))?;
        match (uri.scheme_str(), uri.host()) {
            (Some("https" | "http"), Some(host)) if !host.is_empty() && uri.query().is_none() => {
                Ok(Self(uri))
            }
            _ => Err("no address of an API server (as in https://10.0.0.1:6443)".into()),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_string().trim_end_matches('/'))
    }
}

impl Url {
    pub fn host(&self) -> &str {
        self.0.host().unwrap_or_default().trim_matches(['[', ']'])
    }

    pub fn port(&self) -> u16 {
        self.0.port_u16().unwrap_or(if self.is_plain() { 80 } else { 443 })
    }

    pub fn is_plain(&self) -> bool {
        self.0.scheme_str() == Some("http")
    }

    /// What stands before the paths of the API, where several API servers share an address.
    pub fn prefix(&self) -> &str {
        self.0.path().trim_end_matches('/')
    }

    /// For the header `Host`.
    pub fn authority(&self) -> &str {
        self.0.authority().map_or("", |authority| authority.as_str())
    }
}

/// How the API server is reached.
#[derive(Clone, Debug, Default)]
pub struct Access {
    kubeconfig: Option<PathBuf>,
    account: Option<PathBuf>,
    servers: Vec<Url>,
    last: Arc<Mutex<Option<Arc<Credentials>>>>,
}

/// Who we are, and to whom.
pub struct Credentials {
    /// At least one. All are the same cluster's.
    pub servers: Vec<Url>,
    /// What its certificate must name, if not its address.
    name: Option<String>,
    pub authorization: Option<HeaderValue>,
    pub tls: Arc<ClientConfig>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("servers", &self.servers).finish_non_exhaustive()
    }
}

impl Credentials {
    /// What the certificate of this server must name.
    pub fn name(&self, server: &Url) -> Result<ServerName<'static>, String> {
        let name = self.name.as_deref().unwrap_or_else(|| server.host());
        ServerName::try_from(name.to_owned()).map_err(|_| format!("{name:?} is no name of a server"))
    }
}

impl Access {
    /// `kubeconfig`: `None` in a pod, by its service account. `servers`: instead of the address that is found there.
    pub fn new(kubeconfig: Option<PathBuf>, servers: Vec<Url>) -> Self {
        Self { kubeconfig, servers, ..Self::default() }
    }

    /// A service account's credentials (`token`, `ca.crt`) that are elsewhere.
    #[must_use]
    pub fn with_account(self, directory: PathBuf) -> Self {
        Self { account: Some(directory), ..self }
    }

    /// Reads everything anew.
    pub async fn read(&self) -> Result<Arc<Credentials>, Failure> {
        let read = match &self.kubeconfig {
            Some(path) => {
                self.of_kubeconfig(path).await.map_err(|why| format!("kubeconfig {}: {why}", path.display()))
            }
            None => self.of_account().map_err(|why| format!("in-cluster: {why}")),
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (read, &*last) {
            (Ok(read), _) => Ok(Arc::clone(last.insert(Arc::new(read)))),
            (Err(why), Some(known)) => {
                tracing::debug!("{why}: taken as it was");
                Ok(Arc::clone(known))
            }
            (Err(why), None) => Err(Failure::Access(why)),
        }
    }

    async fn of_kubeconfig(&self, path: &Path) -> Result<Credentials, String> {
        let kubeconfig = Kubeconfig::read_from(path).map_err(told)?;
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(told)?;
        let user = &config.auth_info;
        if user.exec.is_some() || user.auth_provider.is_some() {
            return Err("users that need a program (exec, auth-provider) are not supported: \
                        use a token, a token file or a client certificate"
                .into());
        }
        if config.proxy_url.is_some() {
            return Err("proxy-url is not supported".into());
        }
        let token = match (&user.token, &user.token_file) {
            (Some(token), _) => Some(token.expose_secret().to_owned()),
            (None, Some(file)) => Some(text(Path::new(file))?),
            (None, None) => None,
        };
        if user.username.is_some() {
            return Err("user name and password are not supported: no API server takes them any more".into());
        }
        if config.root_cert.as_ref().is_some_and(Vec::is_empty) {
            return Err("the certificate authority is no certificate".into());
        }
        let server = Url::from_str(&config.cluster_url.to_string())?;
        self.credentials(&config, server, token)
    }

    fn of_account(&self) -> Result<Credentials, String> {
        let directory = self.account.as_deref().unwrap_or_else(|| Path::new(ACCOUNT));
        let server = match self.servers.first() {
            Some(server) => server.clone(),
            None => of_environment(|name| std::env::var(name).ok())?,
        };
        let token = text(&directory.join("token"))?;
        let file = directory.join("ca.crt");
        let pem = text(&file)?;
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let roots = roots.map_err(|error| format!("{}: {error}", file.display()))?;
        if roots.is_empty() {
            return Err(format!("{}: no certificate in it", file.display()));
        }
        let mut config = Config::new(server.0.clone());
        config.root_cert = Some(roots.iter().map(|root| root.to_vec()).collect());
        self.credentials(&config, server, Some(token))
    }

    fn credentials(
        &self,
        config: &Config,
        server: Url,
        token: Option<String>,
    ) -> Result<Credentials, String> {
        let bearer = |token: String| {
            let mut value =
                HeaderValue::try_from(format!("Bearer {}", token.trim())).map_err(|_| "no token")?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        };
        Ok(Credentials {
            servers: if self.servers.is_empty() { vec![server] } else { self.servers.clone() },
            name: config.tls_server_name.clone(),
            authorization: token.map(bearer).transpose()?,
            tls: Arc::new(config.rustls_client_config().map_err(told)?),
        })
    }
}

/// An error and its causes, in one line.
pub fn told(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// The address of the service `default/kubernetes`, as a pod is told it.
fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Url, String> {
    let (host, port) = match (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT")) {
        (Some(host), Some(port)) if !host.is_empty() => (host, port),
        _ => {
            return Err("KUBERNETES_SERVICE_HOST is not set: this is no pod (say --kube-api, or kubernetes:KUBECONFIG)".into());
        }
    };
    let host = match host.parse() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => host,
    };
    Url::from_str(&format!("https://{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let url: Url = "https://[fd00::1]:6443/clusters/x/".parse().unwrap();
        assert_eq!((url.host(), url.port(), url.prefix()), ("fd00::1", 6443, "/clusters/x"));
        let url: Url = "https://api.example.com".parse().unwrap();
        assert_eq!((url.host(), url.port(), url.prefix()), ("api.example.com", 443, ""));
        for bad in ["", "10.0.0.1:6443", "ftp://x", "https://x?y=1", "https://"] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
        let pod = |name: &str| Some(if name.ends_with("PORT") { "443".into() } else { "fd00::1".into() });
        assert_eq!(of_environment(pod).unwrap().to_string(), "https://[fd00::1]:443");
        assert!(of_environment(|_| None).unwrap_err().contains("--kube-api"));
    }

    #[tokio::test]
    async fn a_service_account_is_read_anew_and_kept_while_it_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let server: Url = "https://10.0.0.1:6443".parse().unwrap();
        let access = Access::new(None, vec![server.clone()]).with_account(dir.path().to_owned());
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert!(matches!(access.read().await, Err(Failure::Access(why)) if why.contains("token")));
        write("token", "first\n");
        write("ca.crt", CA);
        assert_eq!(access.read().await.unwrap().authorization.as_ref().unwrap(), "Bearer first");
        write("token", "second");
        let now = access.read().await.unwrap();
        assert_eq!(
            (now.authorization.as_ref().unwrap().to_str().unwrap(), &now.servers[0]),
            ("Bearer second", &server)
        );
        std::fs::remove_file(dir.path().join("token")).unwrap();
        assert_eq!(access.read().await.unwrap().authorization.as_ref().unwrap(), "Bearer second");
        assert!(!format!("{now:?}").contains("second"), "secrets are not shown");
    }

    #[tokio::test]
    async fn kubeconfigs_that_need_a_program_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let user = |user: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
                 clusters: [{{name: k, cluster: {{server: 'https://10.0.0.1:6443', tls-server-name: kube}}}}]\n\
                 users: [{{name: u, user: {user}}}]\n"
            );
            std::fs::write(&path, text).unwrap();
            Access::new(Some(path.clone()), Vec::new())
        };
        let why = user(
            "{exec: {apiVersion: client.authentication.k8s.io/v1, command: id, interactiveMode: Never}}",
        );
        let why = why.read().await.unwrap_err().to_string();
        assert!(why.contains("not supported") && why.contains("config"), "{why}");
        let access = user("{tokenFile: token}");
        assert!(access.read().await.is_err(), "the token is not there");
        std::fs::write(dir.path().join("token"), "t1").unwrap();
        let read = access.read().await.unwrap();
        assert_eq!(read.authorization.as_ref().unwrap(), "Bearer t1");
        assert_eq!(read.name(&read.servers[0]).unwrap(), ServerName::try_from("kube").unwrap());
    }

    /// Any certificate will do.
    const CA: &str = include_str!("test-ca.pem");
}
