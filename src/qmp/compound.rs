//! Lists and objects in replies, which may be anything else.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A list or an object. A string in its place is not repeated in the error, as serde would: it may be long.
pub struct Compound<T>(pub T);

struct Visit<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Compound<T> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        source.deserialize_any(Visit(PhantomData)).map(Compound)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Visit<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list or an object")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Err(E::custom(format_args!(
            "{} bytes of text where a list or an object belongs",
            text.len()
        )))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::deserialize(SeqAccessDeserializer::new(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(object))
    }
}
