//! What stands in the documentation to be pasted works.

use std::path::Path;

use serde_json::{Value, json};

use super::bench::{Host, Pod};

/// The blocks of JSON in a page.
fn blocks(page: &str) -> Vec<Value> {
    let mut found = Vec::new();
    for part in page.split("```json").skip(1) {
        let text = part.split("```").next().unwrap();
        found.push(serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in:\n{text}")));
    }
    found
}

/// The configurations of our plugin in a block: a list's entries get its name and version, as a runtime does it.
fn configurations(block: &Value) -> Vec<Value> {
    let plugins = block["plugins"].as_array().cloned().unwrap_or_else(|| vec![block.clone()]);
    let ours = plugins.into_iter().filter(|plugin| plugin["type"] == "heddle");
    ours.map(|mut plugin| {
        for key in ["name", "cniVersion"] {
            if !block[key].is_null() {
                plugin[key] = block[key].clone();
            }
        }
        plugin
    })
    .collect()
}

#[test]
fn every_configuration_of_the_documentation_works() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut tried = Vec::new();
    for page in std::fs::read_dir(docs).unwrap() {
        let page = page.unwrap().path();
        if page.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&page).unwrap();
        for mut conf in blocks(&text).iter().flat_map(configurations) {
            let (host, pod) = (Host::new(), Pod::new("abc"));
            // Those of ipvlan name an interface that this host does not have.
            if conf["mode"] == "ipvlan" || conf["name"].is_null() {
                continue;
            }
            if conf["ipam"].is_object() {
                conf["ipam"]["dataDir"] = json!(host.data_dir());
            }
            conf["runDir"] = json!(host.data_dir().join("run"));
            let answer = host.call(&pod, "ADD", &conf);
            assert!(answer.success, "{}: {conf}\n{answer:?}", page.display());
            host.del(&pod, &conf);
            tried.push(page.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    for page in ["bridge.md", "moving.md"] {
        assert!(tried.iter().any(|name| name == page), "{page} has none: {tried:?}");
    }
}
