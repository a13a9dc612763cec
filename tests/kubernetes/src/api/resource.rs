//! Where objects are: paths of the API.

use serde_json::Value;

/// What the API server says of a kind.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
}

/// The kinds in an APIResourceList; subresources (`pods/log`) are left out.
pub(super) fn read(list: &Value) -> Vec<Resource> {
    let resources = list["resources"].as_array().into_iter().flatten();
    let read = |resource: &Value| {
        let plural = resource["name"].as_str().filter(|name| !name.contains('/'))?;
        Some(Resource {
            kind: resource["kind"].as_str()?.to_owned(),
            plural: plural.to_owned(),
            namespaced: resource["namespaced"] == true,
        })
    };
    resources.filter_map(read).collect()
}

/// `/api/v1`, `/apis/apps/v1`.
pub(super) fn root(api_version: &str) -> String {
    if api_version.contains('/') { format!("/apis/{api_version}") } else { format!("/api/{api_version}") }
}

/// `text` as a value in a query.
pub(super) fn escape(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}
