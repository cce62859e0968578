//! Fields that a newer version has written and this one does not know. They are kept beside the object
//! and written back with it, so that an update by an older version takes nothing away.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// What an object's types did not take of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Foreign {
    /// A field that nobody here knows, with everything below it.
    Whole(Value),
    /// Unknown fields below these known ones.
    Fields(BTreeMap<String, Foreign>),
    /// Unknown fields of a list's elements, which are known by what names them.
    Elements(Vec<(Map<String, Value>, Foreign)>),
}

/// Fields that tell a list's elements apart. An address that has another owner is another claim: what
/// was said of the one before is not true of it.
const NAMES: [&str; 8] =
    ["address", "owner", "name", "key", "type", "dst", "vtep", "physicalNetwork"];

impl Foreign {
    /// What of `raw` is not in `known`, which was made from it.
    #[must_use]
    pub fn of(raw: &Value, known: &Value) -> Option<Self> {
        match (raw, known) {
            (Value::Object(raw), Value::Object(known)) => {
                let of_field = |(name, value): (&String, &Value)| {
                    let foreign = match known.get(name) {
                        Some(known) => Self::of(value, known)?,
                        None if is_nothing(value) => return None,
                        None => Self::Whole(value.clone()),
                    };
                    Some((name.clone(), foreign))
                };
                let fields: BTreeMap<_, _> = raw.iter().filter_map(of_field).collect();
                (!fields.is_empty()).then_some(Self::Fields(fields))
            }
            (Value::Array(raw), Value::Array(known)) => {
                let of_element = |(raw, known): (&Value, &Value)| {
                    Some((names_of(known)?, Self::of(raw, known)?))
                };
                let elements: Vec<_> = raw.iter().zip(known).filter_map(of_element).collect();
                (!elements.is_empty()).then_some(Self::Elements(elements))
            }
            _ => None,
        }
    }

    /// Writes it back, wherever its place is still there.
    pub fn restore(&self, into: &mut Value) {
        match (self, into) {
            (Self::Fields(fields), Value::Object(into)) => {
                for (name, foreign) in fields {
                    match (foreign, into.get_mut(name)) {
                        (_, Some(known)) => foreign.restore(known),
                        (Self::Whole(value), None) => {
                            into.insert(name.clone(), value.clone());
                        }
                        (_, None) => {}
                    }
                }
            }
            (Self::Elements(elements), Value::Array(into)) => {
                for (names, foreign) in elements {
                    let mut same = into.iter_mut().filter(|e| names_of(e).as_ref() == Some(names));
                    if let Some(element) = same.next() {
                        foreign.restore(element);
                    }
                }
            }
            // Known by now: the object's own word counts.
            _ => {}
        }
    }
}

/// What types leave out although it is written.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn names_of(element: &Value) -> Option<Map<String, Value>> {
    let fields = element.as_object()?;
    let named = |name: &&str| Some(((*name).to_owned(), fields.get(*name)?.clone()));
    Some(NAMES.iter().filter_map(named).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn carried(raw: &Value, known: &Value, mut now: Value) -> Value {
        if let Some(foreign) = Foreign::of(raw, known) {
            foreign.restore(&mut now);
        }
        now
    }

    #[test]
    fn what_is_not_known_comes_back_where_it_was() {
        let raw =
            json!({"spec": {"a": 1, "new": {"x": [1]}, "none": null, "empty": []}, "kind": "K"});
        let known = json!({"spec": {"a": 1}, "kind": "K"});
        assert_eq!(
            carried(&raw, &known, json!({"spec": {"a": 2}, "kind": "K"})),
            json!({"spec": {"a": 2, "new": {"x": [1]}}, "kind": "K"})
        );
        assert_eq!(carried(&raw, &known, json!({"kind": "K"})), json!({"kind": "K"}));
        assert_eq!(Foreign::of(&known, &known), None);
    }

    #[test]
    fn elements_are_found_by_their_names() {
        let raw = json!([
            {"address": "10.0.0.1", "owner": "a", "new": 1},
            {"address": "10.0.0.2", "owner": "b", "new": 2},
            {"address": "10.0.0.3", "owner": "c", "new": 3},
        ]);
        let known = json!([
            {"address": "10.0.0.1", "owner": "a"},
            {"address": "10.0.0.2", "owner": "b"},
            {"address": "10.0.0.3", "owner": "c"},
        ]);
        let now = json!([
            {"address": "10.0.0.0", "owner": "z"},
            {"address": "10.0.0.2", "owner": "b", "state": "Released"},
            {"address": "10.0.0.3", "owner": "another"},
        ]);
        assert_eq!(
            carried(&raw, &known, now),
            json!([
                {"address": "10.0.0.0", "owner": "z"},
                {"address": "10.0.0.2", "owner": "b", "state": "Released", "new": 2},
                {"address": "10.0.0.3", "owner": "another"},
            ])
        );
    }
}
