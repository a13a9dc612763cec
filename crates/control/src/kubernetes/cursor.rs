//! Walking through an object, with the name of the place for whoever wrote it.

use std::cell::RefCell;
use std::fmt::Display;
use std::rc::Rc;
use std::str::FromStr;

use crate::tree::{Error, Tree, Value};

/// A place in an object.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    tree: &'a Tree,
    /// `spec.ports[0].port`
    path: String,
    /// Where is told what is not known here; `None`: it is an error.
    notes: Option<&'a RefCell<Vec<String>>>,
}

impl<'a> Cursor<'a> {
    pub fn new(tree: &'a Tree) -> Self {
        Self { tree, path: String::new(), notes: None }
    }

    /// Values that are not known here are no errors, as new ones come with every release of Kubernetes: they are noted,
    /// and something else counts.
    pub fn lenient(tree: &'a Tree, notes: &'a RefCell<Vec<String>>) -> Self {
        Self { tree, path: String::new(), notes: Some(notes) }
    }

    /// The value is none of those that are known here. `instead` counts, where that may be.
    pub fn unknown<T>(&self, message: impl Display, instead: T) -> Result<T, Error> {
        let error = self.error(message);
        let Some(notes) = self.notes else { return Err(error) };
        notes.borrow_mut().push(error.message);
        Ok(instead)
    }

    /// An item of a list whose tree is not held as a whole.
    pub fn item(tree: &'a Tree, index: usize) -> Self {
        Self { path: format!("items[{index}]"), ..Self::new(tree) }
    }

    pub fn error(&self, message: impl Display) -> Error {
        match self.path.is_empty() {
            true => Error::new(self.tree.at, message.to_string()),
            false => Error::new(self.tree.at, format!("{}: {message}", self.path)),
        }
    }

    /// The line on which it begins.
    pub fn line(&self) -> usize {
        self.tree.at.line
    }

    fn expected(&self, what: &str) -> Error {
        self.error(format!("expected {what}, found {}", self.tree.value))
    }

    /// A field of a map; `None` if it is absent or null.
    pub fn get(&self, key: &str) -> Result<Option<Self>, Error> {
        let Value::Map(map) = &self.tree.value else { return Err(self.expected("a map")) };
        let dot = if self.path.is_empty() { "" } else { "." };
        Ok(map.get(key).filter(|tree| tree.value != Value::Null).map(|tree| Self {
            tree,
            path: format!("{}{dot}{key}", self.path),
            notes: self.notes,
        }))
    }

    /// A field that must be there.
    pub fn need(&self, key: &str) -> Result<Self, Error> {
        self.get(key)?.ok_or_else(|| self.error(format!("the field `{key}` is missing")))
    }

    /// The elements of a list that is a field; none if it is absent.
    pub fn list(&self, key: &str) -> Result<Vec<Self>, Error> {
        let Some(field) = self.get(key)? else { return Ok(Vec::new()) };
        let Value::List(list) = &field.tree.value else { return Err(field.expected("a list")) };
        let element = |(index, tree): (usize, &'a Rc<Tree>)| Self {
            tree,
            path: format!("{}[{index}]", field.path),
            notes: self.notes,
        };
        Ok(list.iter().enumerate().map(element).collect())
    }

    pub fn text(&self) -> Result<&'a str, Error> {
        match &self.tree.value {
            Value::Text(text) => Ok(text),
            _ => Err(self.expected("a text")),
        }
    }

    pub fn truth(&self) -> Result<bool, Error> {
        match self.tree.value {
            Value::Bool(truth) => Ok(truth),
            _ => Err(self.expected("true or false")),
        }
    }

    /// A port number; 0 only where the caller says what it means.
    pub fn port(&self) -> Result<u16, Error> {
        match &self.tree.value {
            Value::Number(number) => {
                number.parse().map_err(|_| self.error(format!("{number} is no port (0 to 65535)")))
            }
            _ => Err(self.expected("a port number")),
        }
    }

    /// A number that is not negative.
    pub fn number(&self, what: &str) -> Result<u32, Error> {
        match &self.tree.value {
            Value::Number(number) => number.parse().map_err(|_| self.error(format!("{number} is no {what}"))),
            _ => Err(self.expected(&format!("a {what}"))),
        }
    }

    pub fn parse<T: FromStr<Err: Display>>(&self, what: &str) -> Result<T, Error> {
        let text = self.text()?;
        text.parse().map_err(|error| self.error(format!("{text:?} is no {what}: {error}")))
    }

    /// A field's text, or nothing.
    pub fn text_at(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.get(key)?.map(|field| field.text()).transpose()
    }
}
