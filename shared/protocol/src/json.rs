//! JSON that is carried as text, and taken apart by who needs what is in it.
//!
//! Invariants:
//! - Whatever is in a [`Json`] has been gone through to its end: reading it later cannot fail.
//! - The text is passed on as it came; two are equal where their values are.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use crate::facts::Input;

/// What the keys begin with by which `serde_json` tells values of its own from objects: with such a key in front, an
/// object is read as something else, or not at all.
pub const RESERVED: &str = "$serde_json::private::";

/// What may be carried as text.
pub trait Carried: Serialize + DeserializeOwned {
    /// Reads nothing that `Self` does not read, and keeps nothing of it.
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
    ///
    /// # Errors
    /// Where what is written could not be read again: for a key that begins with [`RESERVED`].
    pub fn of(value: &T) -> Result<Self, serde_json::Error> {
        Self::checked(serde_json::value::to_raw_value(value)?)
    }

    fn checked(text: Box<RawValue>) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<T::Check>(text.get())?;
        Ok(Self(text, PhantomData))
    }

    /// The value.
    pub fn read(&self) -> T {
        serde_json::from_str(self.as_str()).expect("it was gone through to its end")
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
        Self::checked(Box::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Any JSON whose numbers and strings can be held. (`IgnoredAny` lets `1e999` pass, which no number can hold.)
#[derive(Debug)]
pub struct AnyJson;

impl<'de> Deserialize<'de> for AnyJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Through { is_value: true })
    }
}

/// Any object, as a map of values reads one.
#[derive(Debug, Default)]
struct AnyObject;

impl<'de> Deserialize<'de> for AnyObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let through = Through { is_value: false };
        deserializer.deserialize_map(through).map(|_| Self)
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

struct Through {
    /// A [`Value`] is read here, and not the entries of a map.
    is_value: bool,
}

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
        while let Some(key) = entries.next_key::<AnyKey>()? {
            if self.is_value && key.is_reserved {
                return Err(A::Error::custom(format!(
                    "a key begins with `{RESERVED}`, which stands for something else here; give it another name"
                )));
            }
            entries.next_value::<AnyJson>()?;
        }
        Ok(AnyJson)
    }
}

/// A key, whose escapes have to be right.
struct AnyKey {
    is_reserved: bool,
}

impl<'de> Deserialize<'de> for AnyKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Key;
        impl Visitor<'_> for Key {
            type Value = AnyKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, key: &str) -> Result<AnyKey, E> {
                let is_reserved = key.starts_with(RESERVED);
                Ok(AnyKey { is_reserved })
            }
        }
        deserializer.deserialize_str(Key)
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

    #[test]
    fn keys_that_stand_for_something_else_are_refused() {
        for name in ["RawValue", "Number"] {
            for value in [r#""foo""#, r#""1""#, "1", "{}"] {
                let object = format!(r#"{{"{RESERVED}{name}": {value}}}"#);
                for text in [
                    object.clone(),
                    format!("[{object}]"),
                    format!(r#"{{"a": {object}}}"#),
                    format!(r#"{{"a": 1, {}"#, object.trim_start_matches('{')),
                ] {
                    let error = serde_json::from_str::<Json<Value>>(&text).expect_err(&text);
                    assert!(error.to_string().contains(RESERVED), "{error}");
                }
                let nested = format!(r#"{{"data": {{"labels": {object}}}}}"#);
                serde_json::from_str::<Json<Input>>(&nested).expect_err(&nested);
                // Entries of a map are taken as they are.
                is_alike::<Input>(&format!(r#"{{"data": {object}}}"#));
            }
        }
        let mut labels = serde_json::Map::new();
        labels.insert(format!("{RESERVED}RawValue"), "foo".into());
        let mut input = Input::default();
        input.data.insert("labels".to_owned(), Value::Object(labels));
        let error = Json::of(&input).expect_err("it could not be read again");
        assert!(error.to_string().contains("give it another name"), "{error}");
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
        assert_eq!(carried, Json::of(&carried.read()).expect("readable"));
        assert_ne!(carried, Json::of(&Value::Null).expect("readable"));
    }
}
