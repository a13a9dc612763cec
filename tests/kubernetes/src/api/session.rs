//! What the thread of a connection has: the client, and the kinds that the server knows.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use kube::Client;
use serde_json::Value;

use super::MERGE;
use super::resource::{self, Resource};
use crate::error::{Error, Result};

pub(super) struct Session {
    pub client: Client,
    kinds: RefCell<HashMap<String, Vec<Resource>>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// A request, and how errors name it.
pub(super) fn failed(request: &str, error: kube::Error) -> Error {
    match error {
        kube::Error::Api(status) => Error::Status {
            request: request.to_owned(),
            code: status.code,
            reason: status.reason.clone(),
            message: status.message.clone(),
        },
        other => Error::new(format!("ask the API server: {request}"), chain(&other)),
    }
}

/// An error and all that it comes from.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text += &format!(": {more}");
        }
        source = error.source();
    }
    text
}

impl Session {
    pub fn new(client: Client) -> Self {
        Self { client, kinds: RefCell::default() }
    }

    /// A request and its answer. `content` is the type of `body`.
    pub async fn request(&self, method: &str, path: &str, content: &str, body: Vec<u8>) -> Result<Value> {
        let line = format!("{method} {path}");
        let request = http::Request::builder().method(method).uri(path).header("content-type", content);
        let request = request.body(body).map_err(|e| Error::new(format!("write the request {line}"), e))?;
        self.client.request(request).await.map_err(|e| failed(&line, e))
    }

    /// As [`request`](Self::request), with JSON. A PATCH is a merge.
    pub async fn json(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let content = if method == "PATCH" { MERGE } else { "application/json" };
        let body = body.map(|body| body.to_string().into_bytes());
        self.request(method, path, content, body.unwrap_or_default()).await
    }

    async fn kind(&self, api_version: &str, kind: &str) -> Result<Resource> {
        let known = |session: &Self| {
            let kinds = session.kinds.borrow();
            kinds.get(api_version)?.iter().find(|resource| resource.kind == kind).cloned()
        };
        if let Some(resource) = known(self) {
            return Ok(resource);
        }
        let list = self.json("GET", &resource::root(api_version), None).await?;
        self.kinds.borrow_mut().insert(api_version.to_owned(), resource::read(&list));
        known(self).ok_or_else(|| {
            Error::new(format!("find {api_version}/{kind}"), "the API server has no such kind")
        })
    }

    /// The path of `resource` (`apps/v1/Deployment`) in `namespace`, or in all.
    pub async fn collection(&self, resource: &str, namespace: Option<&str>) -> Result<String> {
        let wrong = || Error::new(format!("find {resource}"), "a resource is written VERSION/KIND");
        let (api_version, kind) = resource.rsplit_once('/').ok_or_else(wrong)?;
        let kind = self.kind(api_version, kind).await?;
        let root = resource::root(api_version);
        Ok(match namespace {
            Some(namespace) if kind.namespaced => format!("{root}/namespaces/{namespace}/{}", kind.plural),
            _ => format!("{root}/{}", kind.plural),
        })
    }

    /// The path of an object, written `NAMESPACE/NAME` or `NAME`.
    pub async fn object(&self, resource: &str, name: &str) -> Result<String> {
        let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
        Ok(format!("{}/{name}", self.collection(resource, Some(namespace)).await?))
    }

    /// The path of the collection that `object` belongs to, and the object's name.
    pub async fn path_of(&self, object: &Value) -> Result<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let resource = format!("{}/{}", text(&object["apiVersion"]), text(&object["kind"]));
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        let name = text(&object["metadata"]["name"]);
        Ok((self.collection(&resource, Some(namespace)).await?, name))
    }
}
