//! JSON as a [`Tree`], or item by item. A list of ten thousand objects is tens of millions of bytes, and its tree ten times
//! as many: of a list only one item is a tree at a time.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::{At, DEEPEST, Error, Tree, Value};

/// One JSON document.
///
/// # Errors
/// What is wrong with it, and where.
pub fn json(text: &str) -> Result<Tree, Error> {
    let mut reader = Reader::new(checked(text)?);
    reader.space();
    reader.tree(1)
}

/// One JSON document; `each` gets the items of its list `items`, in their order, if it has one. What is left is a tree
/// without them.
///
/// # Errors
/// What is wrong with it, and where; or the first error of `each`.
pub fn json_items(
    text: &str,
    mut each: impl FnMut(&Tree, usize, Tree) -> Result<(), Error>,
) -> Result<Tree, Error> {
    let mut reader = Reader { items: Some(Vec::new()), ..Reader::new(checked(text)?) };
    reader.space();
    let head = reader.tree(1)?;
    for (index, place) in reader.items.take().unwrap_or_default().into_iter().enumerate() {
        let item = Reader { place, items: None, ..reader }.tree(3)?;
        each(&head, index, item)?;
    }
    Ok(head)
}

/// Everything below relies on this: what it reads is JSON, and nothing stands behind it.
fn checked(text: &str) -> Result<&str, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) => Ok(text),
        Err(error) => {
            let at = At { line: error.line().max(1), column: error.column().max(1) };
            let message = error.to_string();
            // It repeats the place, which is told in front.
            Err(Error::new(at, message.split(" at line ").next().unwrap_or(&message)))
        }
    }
}

/// A place in the text.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    at: usize,
    line: usize,
    /// Where the line begins, and how many bytes of it begin no character.
    line_start: usize,
    inner: usize,
}

#[derive(Debug)]
struct Reader<'a> {
    text: &'a str,
    place: Place,
    /// `None`: items are like everything else.
    items: Option<Vec<Place>>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, place: Place { line: 1, ..Place::default() }, items: None }
    }

    fn peek(&self) -> u8 {
        self.text.as_bytes().get(self.place.at).copied().unwrap_or(0)
    }

    fn here(&self) -> At {
        let Place { at, line, line_start, inner } = self.place;
        At { line, column: at - line_start - inner + 1 }
    }

    fn space(&mut self) {
        loop {
            match self.peek() {
                b'\n' => {
                    self.place.at += 1;
                    self.place.line += 1;
                    (self.place.line_start, self.place.inner) = (self.place.at, 0);
                }
                b' ' | b'\t' | b'\r' => self.place.at += 1,
                _ => return,
            }
        }
    }

    /// The next sign, and the space behind it.
    fn sign(&mut self) {
        self.place.at += 1;
        self.space();
    }

    fn tree(&mut self, depth: usize) -> Result<Tree, Error> {
        let at = self.here();
        if depth > DEEPEST && matches!(self.peek(), b'{' | b'[') {
            return Err(Error::new(at, format!("more than {DEEPEST} levels of lists and maps")));
        }
        let value = match self.peek() {
            b'{' => self.map(depth)?,
            b'[' => self.list(depth)?,
            b'"' => Value::Text(self.string()),
            _ => match self.word() {
                "null" => Value::Null,
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                number => Value::Number(number.to_owned()),
            },
        };
        Ok(Tree { at, value })
    }

    fn map(&mut self, depth: usize) -> Result<Value, Error> {
        let mut map = BTreeMap::new();
        self.sign();
        while self.peek() == b'"' {
            let at = self.here();
            let key = self.string();
            if map.contains_key(&key) {
                return Err(Error::new(at, format!("the key `{key}` stands here twice")));
            }
            self.space();
            self.sign();
            let tree = match depth == 1 && key == "items" && self.items.is_some() && self.peek() == b'[' {
                true => self.pass_items(),
                false => self.tree(depth + 1)?,
            };
            map.insert(key, Rc::new(tree));
            self.space();
            if self.peek() == b',' {
                self.sign();
            }
        }
        self.place.at += 1;
        Ok(Value::Map(map))
    }

    fn list(&mut self, depth: usize) -> Result<Value, Error> {
        let mut list = Vec::new();
        self.sign();
        while self.peek() != b']' {
            list.push(Rc::new(self.tree(depth + 1)?));
            self.space();
            if self.peek() == b',' {
                self.sign();
            }
        }
        self.place.at += 1;
        Ok(Value::List(list))
    }

    /// Notes where the items are.
    fn pass_items(&mut self) -> Tree {
        let at = self.here();
        self.sign();
        while self.peek() != b']' {
            let place = self.place;
            self.items.get_or_insert_default().push(place);
            self.pass();
            self.space();
            if self.peek() == b',' {
                self.sign();
            }
        }
        self.place.at += 1;
        Tree { at, value: Value::List(Vec::new()) }
    }

    /// Passes over a value.
    fn pass(&mut self) {
        let mut depth = 0usize;
        loop {
            match self.peek() {
                b'"' => drop(self.quoted()),
                b'{' | b'[' => {
                    depth += 1;
                    self.place.at += 1;
                }
                b'}' | b']' => {
                    depth -= 1;
                    self.place.at += 1;
                }
                b',' | b':' => self.place.at += 1,
                _ => drop(self.word()),
            }
            if depth == 0 {
                return;
            }
            self.space();
        }
    }

    /// A number, or a word that has a meaning.
    fn word(&mut self) -> &'a str {
        let rest = &self.text[self.place.at..];
        let end =
            rest.bytes().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n'));
        let word = &rest[..end.unwrap_or(rest.len())];
        self.place.at += word.len();
        word
    }

    /// What stands between quotes, as it stands there.
    fn quoted(&mut self) -> &'a str {
        let rest = &self.text[self.place.at + 1..];
        let (mut end, mut escaped) = (0, false);
        for byte in rest.bytes() {
            match byte {
                b'"' if !escaped => break,
                b'\\' => escaped = !escaped,
                _ => {
                    escaped = false;
                    self.place.inner += usize::from(byte & 0xc0 == 0x80);
                }
            }
            end += 1;
        }
        self.place.at += end + 2;
        &rest[..end]
    }

    fn string(&mut self) -> String {
        let quoted = self.quoted();
        if quoted.contains('\\') { unescape(quoted) } else { quoted.to_owned() }
    }
}

/// RFC 8259 section 7. Half a pair of surrogates is no character; JSON allows it, and so must we.
fn unescape(quoted: &str) -> String {
    let mut text = String::with_capacity(quoted.len());
    let mut rest = quoted;
    let unit = |rest: &str| u16::from_str_radix(rest.strip_prefix("\\u")?.get(..4)?, 16).ok();
    while let Some(start) = rest.find('\\') {
        let (before, escape) = rest.split_at(start);
        text.push_str(before);
        let (c, length) = match escape.as_bytes().get(1) {
            Some(b'u') => {
                let units = [unit(escape), escape.get(6..).and_then(unit)];
                let pair = char::decode_utf16(units.into_iter().flatten()).next();
                match pair {
                    Some(Ok(c)) => (c, if c.len_utf16() == 2 { 12 } else { 6 }),
                    _ => (char::REPLACEMENT_CHARACTER, 6),
                }
            }
            Some(b'n') => ('\n', 2),
            Some(b't') => ('\t', 2),
            Some(b'r') => ('\r', 2),
            Some(b'b') => ('\u{8}', 2),
            Some(b'f') => ('\u{c}', 2),
            Some(byte) => (char::from(*byte), 2),
            None => break,
        };
        text.push(c);
        rest = escape.get(length..).unwrap_or_default();
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn plain(tree: &Tree) -> serde_json::Value {
        match &tree.value {
            Value::Null => json!(null),
            Value::Bool(truth) => json!(truth),
            Value::Number(number) => number.parse().map_or_else(|_| json!(number), serde_json::Value::Number),
            Value::Text(text) => json!(text),
            Value::List(list) => list.iter().map(|tree| plain(tree)).collect(),
            Value::Map(map) => {
                serde_json::Value::Object(map.iter().map(|(key, tree)| (key.clone(), plain(tree))).collect())
            }
        }
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(|truth| json!(truth)),
            any::<i32>().prop_map(|number| json!(number)),
            "[\\PC\"\\\\\n\u{1}\u{1f600}]{0,8}".prop_map(|text| json!(text)),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
                prop::collection::btree_map("[a-c\"\\\\é]{0,3}|items", inner, 0..5)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_is_what_serde_reads(value in any_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            prop_assert_eq!(plain(&json(&text).unwrap()), value.clone());
            let mut items = Vec::new();
            let head = json_items(&text, |_, index, item| {
                prop_assert_eq_unwrap(index, items.len());
                items.push(plain(&item));
                Ok(())
            }).unwrap();
            match value.get("items").filter(|items| items.is_array()) {
                Some(list) => prop_assert_eq!(list, &json!(items)),
                None => prop_assert_eq!((items.len(), plain(&head)), (0, value)),
            }
        }

        #[test]
        fn places_are_those_of_the_text(value in any_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let lines: Vec<&str> = text.split('\n').collect();
            let mut all = vec![Rc::new(json(&text).unwrap())];
            while let Some(tree) = all.pop() {
                let c = lines[tree.at.line - 1].chars().nth(tree.at.column - 1).unwrap();
                let fits = match &tree.value {
                    Value::Map(map) => { all.extend(map.values().cloned()); c == '{' }
                    Value::List(list) => { all.extend(list.iter().cloned()); c == '[' }
                    Value::Text(_) => c == '"',
                    Value::Null => c == 'n',
                    Value::Bool(truth) => c == if *truth { 't' } else { 'f' },
                    Value::Number(number) => number.starts_with(c),
                };
                prop_assert!(fits, "{:?} at {c:?}", tree);
            }
        }
    }

    fn prop_assert_eq_unwrap(one: usize, other: usize) {
        assert_eq!(one, other);
    }

    #[test]
    fn what_may_stand_there_is_read_and_what_may_not_is_named() {
        let text = "{\n\t\"a\": \"\\ud83d\\ude00 \\/ \\\\ud83d \\u0041 \\ud83d\",\n\t\"b\":[1,{\"c\":null}],\"d\":-1.5e3}";
        let tree = json(text).unwrap();
        let Value::Map(map) = &tree.value else { panic!() };
        assert_eq!(map["a"].value, Value::Text("\u{1f600} / \\ud83d A \u{fffd}".into()));
        assert_eq!((map["b"].at.line, map["d"].at), (3, At { line: 3, column: 25 }));
        assert_eq!(map["d"].value, Value::Number("-1.5e3".into()));
        let error = |text: &str| json(text).unwrap_err().to_string();
        assert_eq!(error("{\"a\": 1,\n  b: 2}"), "2:3: key must be a string");
        assert_eq!(error("{\"a\": 1,\n  \"a\": 2}"), "2:3: the key `a` stands here twice");
        assert!(error(&format!("{}{}", "[".repeat(100), "]".repeat(100))).contains("more than 64 levels"));
        assert!(json("{\"a\": 1} {}").is_err() && json("").is_err() && json(&"[".repeat(1_000_000)).is_err());
        assert!(json("\u{feff}[]").is_ok());
    }

    #[test]
    fn an_item_knows_where_it_stands() {
        let text = "{\"items\": [{\"a\": 1},\n {\"a\": {\"a\": 1, \"a\": 2}}],\n\"kind\": \"List\"}";
        let mut seen = Vec::new();
        let error = json_items(text, |head, index, item| {
            let Value::Map(map) = &head.value else { panic!() };
            assert_eq!(map["kind"].value, Value::Text("List".into()), "the head comes first");
            seen.push((index, item.at));
            Ok(())
        });
        assert_eq!(seen, [(0, At { line: 1, column: 12 })]);
        assert_eq!(error.unwrap_err().to_string(), "2:17: the key `a` stands here twice");
    }
}
