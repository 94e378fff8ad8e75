//! JSON that is carried as text, and taken apart by who needs what is in it.
//!
//! Invariants:
//! - What was read from a message has been gone through to its end: reading it later cannot fail.
//! - The text is passed on as it came; two are equal where their values are.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use crate::facts::Input;

/// What may be carried as text.
pub trait Carried: Serialize + DeserializeOwned {
    /// Reads exactly what `Self` reads, and keeps nothing of it.
    type Check: DeserializeOwned;
}

impl Carried for Value {
    type Check = AnyJson;
}

impl Carried for Input {
    type Check = AnyInput;
}

/// A `T` as JSON text. Most who pass a message on never ask what is in it: to scan a text costs a tenth of what it
/// costs to build and drop its values.
pub struct Json<T>(Box<RawValue>, PhantomData<fn() -> T>);

impl<T: Carried> Json<T> {
    /// The text of this value.
    pub fn of(value: &T) -> Self {
        // Maps with string keys and finite numbers, for which serialisation cannot fail.
        let text = serde_json::value::to_raw_value(value).expect("what is carried always serialises");
        Self(text, PhantomData)
    }

    /// The value.
    pub fn read(&self) -> T {
        serde_json::from_str(self.as_str()).expect("it was written from a value, or read to its end")
    }
}

impl<T> Json<T> {
    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

impl<T> Clone for Json<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<T> fmt::Debug for Json<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<T: Carried + PartialEq> PartialEq for Json<T> {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str() || self.read() == other.read()
    }
}

impl<T> Serialize for Json<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Carried> Deserialize<'de> for Json<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        serde_json::from_str::<T::Check>(text.get()).map_err(D::Error::custom)?;
        Ok(Self(text, PhantomData))
    }
}

/// Any JSON whose numbers and strings can be held. (`IgnoredAny` lets `1e999` pass, which no number can hold.)
#[derive(Debug)]
pub struct AnyJson;

impl<'de> Deserialize<'de> for AnyJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Through)
    }
}

/// An object, or nothing that could be one.
#[derive(Debug, Default)]
struct AnyObject;

impl<'de> Deserialize<'de> for AnyObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Through).map(|_| Self)
    }
}

/// The shape of an [`Input`].
#[derive(Debug, Deserialize)]
pub struct AnyInput {
    #[serde(default, rename = "data")]
    _data: AnyObject,
    #[serde(default, rename = "alert")]
    _alert: Option<AnyObject>,
}

struct Through;

impl<'de> Visitor<'de> for Through {
    type Value = AnyJson;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_unit<E>(self) -> Result<AnyJson, E> {
        Ok(AnyJson)
    }

    fn visit_bool<E>(self, _: bool) -> Result<AnyJson, E> {
        Ok(AnyJson)
    }

    fn visit_i64<E>(self, _: i64) -> Result<AnyJson, E> {
        Ok(AnyJson)
    }

    fn visit_u64<E>(self, _: u64) -> Result<AnyJson, E> {
        Ok(AnyJson)
    }

    fn visit_f64<E>(self, _: f64) -> Result<AnyJson, E> {
        Ok(AnyJson)
    }

    fn visit_str<E>(self, _: &str) -> Result<AnyJson, E> {
        Ok(AnyJson)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<AnyJson, A::Error> {
        while items.next_element::<AnyJson>()?.is_some() {}
        Ok(AnyJson)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<AnyJson, A::Error> {
        while entries.next_entry::<AnyKey, AnyJson>()?.is_some() {}
        Ok(AnyJson)
    }
}

/// A key, whose escapes have to be right.
struct AnyKey;

impl<'de> Deserialize<'de> for AnyKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Through).map(|_| Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_alike<T: Carried + PartialEq + fmt::Debug>(text: &str) {
        let read = serde_json::from_str::<T>(text);
        let carried = serde_json::from_str::<Json<T>>(text);
        assert_eq!(
            read.is_ok(),
            carried.is_ok(),
            "{text:?}: {:?}, {:?}",
            read.as_ref().err(),
            carried.as_ref().err()
        );
        if let (Ok(read), Ok(carried)) = (read, carried) {
            assert_eq!(carried.read(), read, "{text:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_at_once() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        for text in [
            "",
            "nul",
            "null",
            "1e999",
            "-1e999",
            "18446744073709551615",
            "123456789012345678901234567890",
            r#""\ud800""#,
            r#""\ud83d\ude00""#,
            r#"{"\ud800": 1}"#,
            r#"{"a": [1, {"b": 1e999}]}"#,
            r#"{"a": 1, "a": 2}"#,
            r#"[{"a": {"b": [1.5, null, true, "x"]}}, -3]"#,
            r#"{"data": {"a": 1e999}}"#,
            r#"{"data": null}"#,
            r#"{"data": []}"#,
            r#"{"data": {}, "alert": null}"#,
            r#"{"data": {}, "alert": "x"}"#,
            r#"{"data": {}, "data": {}}"#,
            r#"{"data": {"x": "\ud800"}, "alert": {"labels": {}}}"#,
            r#"{"alert": {}, "more": [1e999]}"#,
            r#"{"alert": {}, "more": [1]}"#,
            "{}",
            "[]",
            "[{}]",
            "[{}, {}]",
            "{} {}",
            &deep(127),
            &deep(128),
            &format!(r#"{{"data": {{"x": {}}}}}"#, deep(125)),
            &format!(r#"{{"data": {{"x": {}}}}}"#, deep(126)),
        ] {
            is_alike::<Value>(text);
            is_alike::<Input>(text);
        }
    }

    proptest! {
        #[test]
        fn carried_is_what_can_be_read(text in r#"\{"(data|alert)": ?\{("[a-z\\u]{0,3}": ?(-?[0-9]{1,4}(e[0-9]{1,3})?|null|\[\]|"\\?[nu]d?[0-9a-f]{0,4}"),?){0,3}\}\}"#) {
            is_alike::<Value>(&text);
            is_alike::<Input>(&text);
        }
    }

    #[test]
    fn the_text_is_passed_on_as_it_came() {
        let text = r#"{"z": 1,  "a": [2.50]}"#;
        let carried: Json<Value> = serde_json::from_str(text).expect("JSON");
        assert_eq!(carried.as_str(), text);
        assert_eq!(serde_json::to_string(&carried).expect("JSON"), text);
        assert_eq!(format!("{carried:?}"), text);
        assert_eq!(carried, Json::of(&carried.read()));
        assert_ne!(carried, Json::of(&Value::Null));
    }
}
