//! What Kubernetes objects mean in the words of the model. Fields that are not read are ignored: they are
//! Kubernetes' business, and new ones come with every release.

pub mod api;
mod cursor;
mod endpoints;
mod external;
pub mod flannel;
mod node;
mod ports;
mod service;
#[cfg(test)]
mod tests;
mod time;
mod words;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use heddle_model::{Created, Endpoints, Node, Service, ServiceName};

use crate::tree::{self, Error, Tree};
use cursor::Cursor;
pub use words::Words;

/// What an object is called among all objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Node(Arc<str>),
    Service(ServiceName),
    EndpointSlice { namespace: Arc<str>, name: Arc<str> },
    Endpoints(ServiceName),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "Node {name}"),
            Self::Service(name) => write!(f, "Service {name}"),
            Self::EndpointSlice { namespace, name } => write!(f, "EndpointSlice {namespace}/{name}"),
            Self::Endpoints(name) => write!(f, "Endpoints {name}"),
        }
    }
}

/// An object that means something to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub key: Key,
    /// The line on which it begins.
    pub line: usize,
    pub value: Value,
}

/// Shared from here on: what did not change is not copied, and is compared by its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Node(Arc<Node>),
    Service(Arc<Service>),
    /// Of an EndpointSlice.
    Slice(Arc<Endpoints>),
    /// Of an Endpoints object, one for each subset.
    Endpoints(Vec<Arc<Endpoints>>),
    /// The object is there, and none of our business (another proxy's service, an ExternalName, ...).
    NotOurs,
}

/// `metadata` of an object.
struct Meta<'a> {
    namespace: Arc<str>,
    name: Arc<str>,
    created: Created,
    labels: Option<Cursor<'a>>,
}

impl<'a> Meta<'a> {
    fn of(object: &Cursor<'a>) -> Result<Self, Error> {
        let meta = object.need("metadata")?;
        let name = name(&meta.need("name")?)?;
        let namespace = match meta.get("namespace")? {
            Some(namespace) => self::name(&namespace)?,
            None => "default".into(),
        };
        let created = match meta.get("creationTimestamp")? {
            None => Created::UNKNOWN,
            Some(at) => {
                let text = at.text()?;
                time::parse(text).ok_or_else(|| at.error(format!("{text:?} is no time (RFC 3339)")))?
            }
        };
        Ok(Self { namespace, name, created, labels: meta.get("labels")? })
    }

    fn label(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.labels.as_ref().map_or(Ok(None), |labels| labels.text_at(key))
    }

    fn service_name(&self) -> ServiceName {
        ServiceName { namespace: Arc::clone(&self.namespace), name: Arc::clone(&self.name) }
    }

    /// Objects that kube-proxy leaves alone as well: another proxy's, and those of headless services.
    fn is_left_alone(&self) -> Result<bool, Error> {
        let proxy = self.label("service.kubernetes.io/service-proxy-name")?;
        let headless = self.label("service.kubernetes.io/headless")?;
        Ok(proxy.is_some() || headless.is_some())
    }
}

/// The name of an object: a DNS subdomain (RFC 1123) as the API server admits it. It is printed, logged and
/// put into the kernel, so nothing else passes.
fn name(at: &Cursor<'_>) -> Result<Arc<str>, Error> {
    let text = at.text()?;
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let valid = (1..=253).contains(&text.len())
        && text.chars().all(fine)
        && text.starts_with(edge)
        && text.ends_with(edge);
    match valid {
        true => Ok(text.into()),
        false => Err(
            at.error("not a name (at most 253 of a-z 0-9 - ., beginning and ending with a letter or digit)")
        ),
    }
}

/// The objects of a document: one, or those of a list. Kinds that mean nothing to us are left out.
pub fn objects(document: &Tree) -> Result<Vec<Object>, Error> {
    let root = Cursor::new(document);
    let kind = root
        .text_at("kind")?
        .ok_or_else(|| root.error("no Kubernetes object: the field `kind` is missing"))?;
    let version = root.text_at("apiVersion")?.unwrap_or_default();
    let Some(item_kind) = kind.strip_suffix("List") else {
        return Ok(object(&root, version, kind, document.at.line)?.into_iter().collect());
    };
    let mut objects = Vec::new();
    for item in root.list("items")? {
        // The items of a `NodeList` do not repeat that they are nodes; those of a `List` must.
        let kind = item.text_at("kind")?.unwrap_or(item_kind);
        let version = item.text_at("apiVersion")?.unwrap_or(version);
        objects.extend(object(&item, version, kind, item.line())?);
    }
    Ok(objects)
}

/// [`objects`] of a JSON document. Of a list there is one item in memory at a time.
pub fn json(text: &str) -> Result<Vec<Object>, Error> {
    let mut found = Vec::new();
    let head = tree::json_items(text, |head, index, item| {
        let root = Cursor::new(head);
        let (kind, version) = (root.text_at("kind")?, root.text_at("apiVersion")?.unwrap_or_default());
        let Some(kind) = kind.and_then(|kind| kind.strip_suffix("List")) else { return Ok(()) };
        let item = Cursor::item(&item, index);
        let kind = item.text_at("kind")?.unwrap_or(kind);
        let version = item.text_at("apiVersion")?.unwrap_or(version);
        found.extend(object(&item, version, kind, item.line())?);
        Ok(())
    })?;
    found.extend(objects(&head)?);
    Ok(found)
}

fn object(at: &Cursor<'_>, version: &str, kind: &str, line: usize) -> Result<Option<Object>, Error> {
    let (key, value) = match (version, kind) {
        ("v1", "Node") => node::node(at)?,
        ("v1", "Service") => service::service(at)?,
        ("v1", "Endpoints") => endpoints::endpoints(at)?,
        ("discovery.k8s.io/v1", "EndpointSlice") => endpoints::slice(at)?,
        _ => {
            tracing::debug!(version, kind, line, "ignored: a kind of object that nothing is made of");
            return Ok(None);
        }
    };
    Ok(Some(Object { key, line, value }))
}

/// An object from the API: the API server has looked it over, and may be newer than we are.
#[derive(Debug)]
pub struct Lenient {
    pub key: Key,
    pub value: Result<Value, Error>,
    /// Values that are not known here, and that count as something else or not at all.
    pub notes: Vec<String>,
}

/// What an object of this kind means, whatever new values it has.
///
/// # Errors
/// What has no name is no object.
pub fn lenient(tree: &Tree, version: &str, kind: &str) -> Result<Lenient, Error> {
    let notes = RefCell::default();
    let at = Cursor::lenient(tree, &notes);
    let meta = at.need("metadata")?;
    let name = name(&meta.need("name")?)?;
    let namespace = meta.get("namespace")?.map_or_else(|| Ok("default".into()), |at| self::name(&at))?;
    let value = object(&at, version, kind, 0);
    let key = match (&value, kind) {
        (Ok(Some(object)), _) => object.key.clone(),
        (_, "Node") => Key::Node(name),
        (_, "Service") => Key::Service(ServiceName { namespace, name }),
        (_, "Endpoints") => Key::Endpoints(ServiceName { namespace, name }),
        _ => Key::EndpointSlice { namespace, name },
    };
    let value = value.map(|object| object.map_or(Value::NotOurs, |object| object.value));
    drop(at);
    drop(meta);
    Ok(Lenient { key, value, notes: notes.into_inner() })
}

/// `metadata.resourceVersion` of an object, or of a list.
pub fn resource_version(tree: &Tree) -> Option<&str> {
    Cursor::new(tree).get("metadata").ok()??.text_at("resourceVersion").ok()?
}
