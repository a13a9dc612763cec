//! YAML and JSON as a tree in which everything knows where it stands, so that any later complaint can name
//! line and column.
//!
//! The text may be anybody's: depth and size are bounded, an alias costs a reference and no copy, and a key
//! that stands twice is an error, because which of the two counts is nobody's to guess.

mod json;

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

pub use json::{json, json_items};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};

/// Levels of lists and maps in each other.
const DEEPEST: usize = 64;

/// Line and column, both from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    pub line: usize,
    pub column: usize,
}

impl From<&Marker> for At {
    fn from(mark: &Marker) -> Self {
        Self { line: mark.line().max(1), column: mark.col() + 1 }
    }
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{}: {message}", at.line, at.column)]
pub struct Error {
    pub at: At,
    pub message: String,
}

impl Error {
    pub fn new(at: At, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Bool(bool),
    /// As it was written.
    Number(String),
    Text(String),
    List(Vec<Rc<Tree>>),
    Map(BTreeMap<String, Rc<Tree>>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    pub at: At,
    pub value: Value,
}

/// For "expected a number, found ...".
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::Number(number) => write!(f, "the number {number}"),
            Self::Text(text) if text.chars().count() > 40 => f.write_str("a long text"),
            Self::Text(text) => write!(f, "the text {text:?}"),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a map"),
        }
    }
}

/// The documents of a YAML stream (`---` between them). Empty documents are left out.
pub fn yaml(text: &str) -> Result<Vec<Rc<Tree>>, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| Error::new(error.marker().into(), error.info()))?;
        builder.event(event, &span)?;
    }
    builder.documents.retain(|tree| tree.value != Value::Null);
    Ok(builder.documents)
}

#[derive(Default)]
struct Builder {
    documents: Vec<Rc<Tree>>,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Rc<Tree>>,
}

/// A list or map that has not ended yet.
struct Open {
    at: At,
    anchor: usize,
    value: Value,
    /// The key whose value comes next.
    key: Option<String>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Error> {
        let at = At::from(&span.start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref(), at)?;
                if let Some(open) = self.open.last_mut()
                    && open.key.is_none()
                    && let Value::Map(map) = &open.value
                {
                    if style == ScalarStyle::Plain && text == "<<" {
                        return Err(Error::new(at, "merge keys (<<) are not supported"));
                    }
                    if map.contains_key(text.as_ref()) {
                        return Err(Error::new(at, format!("the key `{text}` stands here twice")));
                    }
                    open.key = Some(text.into_owned());
                    return Ok(());
                }
                self.add(Tree { at, value }, anchor)
            }
            Event::SequenceStart(anchor, _) => self.start(at, anchor, Value::List(Vec::new())),
            Event::MappingStart(anchor, _) => self.start(at, anchor, Value::Map(BTreeMap::new())),
            Event::SequenceEnd | Event::MappingEnd => {
                let open = self.open.pop().ok_or_else(|| Error::new(at, "an end without a start"))?;
                self.add(Tree { at: open.at, value: open.value }, open.anchor)
            }
            Event::Alias(anchor) => {
                let tree = self.anchors.get(&anchor).cloned();
                self.put(tree.ok_or_else(|| Error::new(at, "an alias inside of what it names"))?)
            }
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn start(&mut self, at: At, anchor: usize, value: Value) -> Result<(), Error> {
        if self.open.len() >= DEEPEST {
            return Err(Error::new(at, format!("more than {DEEPEST} levels of lists and maps")));
        }
        self.keyed(at)?;
        self.open.push(Open { at, anchor, value, key: None });
        Ok(())
    }

    /// A list or map cannot be a key.
    fn keyed(&self, at: At) -> Result<(), Error> {
        match self.open.last() {
            Some(Open { value: Value::Map(_), key: None, .. }) => Err(Error::new(at, "a key must be a text")),
            _ => Ok(()),
        }
    }

    fn add(&mut self, tree: Tree, anchor: usize) -> Result<(), Error> {
        let tree = Rc::new(tree);
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&tree));
        }
        self.put(tree)
    }

    fn put(&mut self, tree: Rc<Tree>) -> Result<(), Error> {
        self.keyed(tree.at)?;
        match self.open.last_mut() {
            None => self.documents.push(tree),
            Some(open) => match (&mut open.value, open.key.take()) {
                (Value::Map(map), Some(key)) => drop(map.insert(key, tree)),
                (Value::List(list), _) => list.push(tree),
                _ => {}
            },
        }
        Ok(())
    }
}

/// The core schema of YAML 1.2 (section 10.3), as far as Kubernetes objects need it.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, at: At) -> Result<Value, Error> {
    let suffix = tag.filter(|tag| tag.is_yaml_core_schema()).map(|tag| tag.suffix.as_str());
    match (tag, suffix) {
        (None, _) if style != ScalarStyle::Plain => return Ok(Value::Text(text.to_owned())),
        (_, Some("str")) => return Ok(Value::Text(text.to_owned())),
        (None, _) | (_, Some("int" | "float" | "bool" | "null")) => {}
        (Some(tag), _) => {
            return Err(Error::new(at, format!("the tag {}{} is not supported", tag.handle, tag.suffix)));
        }
    }
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if is_number(text) => Value::Number(text.to_owned()),
        _ => Value::Text(text.to_owned()),
    })
}

fn is_number(text: &str) -> bool {
    let starts = text.trim_start_matches(['-', '+', '.']).starts_with(|c: char| c.is_ascii_digit());
    let digits = |text: &str, prefix: &str, base: u32| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_digit(base)))
    };
    starts && (text.parse::<f64>().is_ok() || digits(text, "0x", 16) || digits(text, "0o", 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        yaml(text).unwrap_err().to_string()
    }

    #[test]
    fn everything_knows_where_it_stands() {
        let documents = yaml("a: 1\nb:\n  - 'x'\n  - y: null\n---\n# nothing\n---\nc: true\n").unwrap();
        assert_eq!(documents.len(), 2);
        let Value::Map(map) = &documents[0].value else { panic!() };
        let Value::List(list) = &map["b"].value else { panic!() };
        assert_eq!((map["a"].at, list[0].at), (At { line: 1, column: 4 }, At { line: 3, column: 5 }));
        assert_eq!(map["a"].value, Value::Number("1".into()));
        assert_eq!(list[0].value, Value::Text("x".into()));
    }

    #[test]
    fn files_of_other_systems_and_other_habits_are_read() {
        let text = "\u{feff}%YAML 1.2\r\n---\r\na: &x [1,\t2]  # comment\r\nb: *x\r\nc: |\r\n  one\r\n  \ttwo\r\nd: >-\r\n  x\r\n  y\r\n...\r\n";
        let documents = yaml(text).unwrap();
        let Value::Map(map) = &documents[0].value else { panic!() };
        assert_eq!(map["a"], map["b"]);
        assert_eq!(map["c"].value, Value::Text("one\n\ttwo\n".into()));
        assert_eq!(map["d"].value, Value::Text("x y".into()));
    }

    #[test]
    fn scalars_are_those_of_the_core_schema() {
        let value = |text: &str| match &yaml(&format!("v: {text}")).unwrap()[0].value {
            Value::Map(map) => map["v"].value.clone(),
            _ => panic!(),
        };
        for text in
            ["10.96.0.1", "'80'", "\"80\"", "fd00::1", "on", "1.2.3", "!!str 80", "1_000", "2026-01-01"]
        {
            assert!(matches!(value(text), Value::Text(_)), "{text}: {:?}", value(text));
        }
        for text in ["80", "-1", "1e3", "0x1f", "1.5"] {
            assert!(matches!(value(text), Value::Number(_)), "{text}");
        }
        assert_eq!([value("~"), value(""), value("null")], [Value::Null, Value::Null, Value::Null]);
    }

    #[test]
    fn errors_name_the_place() {
        assert!(error("a: 1\nb: [1, 2\nc: 3\n").starts_with("3:"), "{}", error("a: 1\nb: [1, 2\nc: 3\n"));
        assert_eq!(error("a: 1\nb: 2\na: 3\n"), "3:1: the key `a` stands here twice");
        assert_eq!(error("a: &x {b: 1}\nc:\n  <<: *x\n"), "3:3: merge keys (<<) are not supported");
        assert_eq!(error("a: !secret b"), "1:4: the tag !secret is not supported");
        assert_eq!(error("? [a]\n: b"), "1:3: a key must be a text");
        assert!(error("a: *nobody").starts_with("1:4: "));
        assert!(error("a:\n\t- b").starts_with("2:"), "{}", error("a:\n\t- b"));
    }

    #[test]
    fn depth_is_bounded_and_aliases_cost_nothing() {
        let deep = "[".repeat(100);
        assert!(error(&deep).contains("more than 64 levels"), "{}", error(&deep));
        assert!(yaml(&"[".repeat(1_000_000)).is_err() && yaml(&"- ".repeat(1_000_000)).is_err());
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for n in 1..40 {
            let list = vec![format!("*a{}", n - 1); 10].join(",");
            bomb.push_str(&format!("a{n}: &a{n} [{list}]\n"));
        }
        assert_eq!(yaml(&bomb).unwrap().len(), 1);
        assert!(yaml("a: &x [*x]").is_err());
    }
}
