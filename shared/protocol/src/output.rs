//! Bodies of any size: small ones travel in the message, large ones in the object store.
//!
//! Invariant: a [`Body::Blob`] always carries a preview that fits where the whole would not.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Bodies above this many bytes of JSON go to the object store.
pub const INLINE_BYTES_MAX: usize = 64 * 1024;

/// A JSON value, here or in the object store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// The value itself.
    Inline(Value),
    /// The value is JSON in the object store; `preview` is a shortened form of it.
    Blob {
        /// Where the whole is.
        blob: BlobRef,
        /// The same shape with long texts cut.
        preview: Value,
    },
}

impl Body {
    /// The value where it is inline, else its preview.
    pub fn preview(&self) -> &Value {
        match self {
            Self::Inline(value) => value,
            Self::Blob { preview, .. } => preview,
        }
    }
}

/// Names an object of the store `fist-blobs` by its content.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// SHA-256 of the content, 64 lower-case hexadecimal digits; the object's name.
    pub sha256: String,
    /// Length of the content in bytes.
    pub bytes: u64,
}
