//! Bodies over 64 KiB: objects named by the sha256 of their content.
//!
//! Invariants:
//! - An object is looked for before it is put: the same content is kept once.
//! - Objects go by age alone (`nats.blobs_max_age_hours`). What is put and older than half of that is written anew, so
//!   that whatever is put now is there for half of it at least, which is longer than the log keeps a message that
//!   names it. Nobody removes a former copy, which may be read just then.
//! - What [`Blobs::get`] returns has the hash it was asked for.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{
    HeaderMap, header,
    jetstream::{
        Context,
        object_store::{GetErrorKind, ObjectStore},
        stream::DirectGetErrorKind,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use bytes::Bytes;
use protocol::{BlobRef, Timestamp};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{connect::Connection, log::LogError, topology::BLOBS_BUCKET};

/// The largest body that is put: what a spilled output may be, with room for its JSON.
pub const BLOB_BYTES_MAX: usize = 64 << 20;

/// How long one transfer may take.
const TRANSFER_TIME: Duration = Duration::from_secs(60);

/// Bytes of one message of an object, as NATS' own clients have it.
const CHUNK_BYTES: usize = 128 << 10;

/// The store of large bodies. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    home: Home,
}

#[derive(Clone)]
enum Home {
    Nats(Arc<Bucket>),
    Memory(Arc<Mutex<BTreeMap<String, Bytes>>>, usize),
}

struct Bucket {
    objects: ObjectStore,
    connection: Connection,
    now: fn() -> Timestamp,
}

/// What is of interest of an object's own description.
#[derive(Deserialize)]
struct Meta {
    size: u64,
    #[serde(default)]
    deleted: bool,
}

/// The name of `content`.
pub fn sha256_hex(content: &[u8]) -> String {
    let mut name = String::with_capacity(64);
    for byte in Sha256::digest(content) {
        // Writing into a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

impl Blobs {
    /// Opens the store on `connection`.
    ///
    /// # Errors
    /// [`LogError::Missing`] where `fist nats init` did not run.
    pub async fn open(connection: &Connection) -> Result<Self, LogError> {
        Self::open_at(connection, service::clock::now).await
    }

    /// The same by another clock, for tests.
    ///
    /// # Errors
    /// As [`Blobs::open`].
    pub async fn open_at(connection: &Connection, now: fn() -> Timestamp) -> Result<Self, LogError> {
        match connection.context.get_object_store(BLOBS_BUCKET).await {
            Ok(objects) => Ok(Self {
                home: Home::Nats(Arc::new(Bucket {
                    objects,
                    connection: connection.clone(),
                    now,
                })),
            }),
            Err(error) => {
                tracing::debug!(%error, "the object store cannot be opened");
                Err(LogError::Missing {
                    what: format!("the object store {BLOBS_BUCKET}"),
                })
            }
        }
    }

    /// A store in memory, for the simulated broker.
    pub fn in_memory() -> Self {
        Self::in_memory_up_to(usize::MAX)
    }

    /// A store in memory that takes so many bytes.
    pub fn in_memory_up_to(bytes_max: usize) -> Self {
        Self {
            home: Home::Memory(Arc::default(), bytes_max),
        }
    }

    /// Stores `content`, if it is not there, or not for long any more.
    ///
    /// # Errors
    /// [`LogError`]; putting again is safe.
    pub async fn put(&self, content: Bytes) -> Result<BlobRef, LogError> {
        if content.len() > BLOB_BYTES_MAX {
            return Err(LogError::TooLarge {
                subject: BLOBS_BUCKET.to_owned(),
                bytes: content.len(),
                bytes_max: BLOB_BYTES_MAX,
            });
        }
        let blob = BlobRef {
            sha256: sha256_hex(&content),
            bytes: content.len() as u64,
        };
        match &self.home {
            Home::Nats(bucket) => {
                let put = timeout(TRANSFER_TIME, bucket.put_if_due(&blob, &content)).await;
                put.map_err(|_| LogError::unavailable("store a large body", "it took too long"))??;
            }
            Home::Memory(objects, bytes_max) => {
                let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
                let bytes: usize = objects.values().map(Bytes::len).sum();
                if bytes.saturating_add(content.len()) > *bytes_max {
                    return Err(LogError::Full {
                        stream: format!("OBJ_{BLOBS_BUCKET}"),
                        reason: "maximum bytes exceeded".to_owned(),
                    });
                }
                objects.entry(blob.sha256.clone()).or_insert(content);
            }
        }
        Ok(blob)
    }

    /// Reads the content that `blob` names; `None` where it is not, or no more, in the store.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when what is stored has another hash.
    pub async fn get(&self, blob: &BlobRef) -> Result<Option<Bytes>, LogError> {
        if blob.bytes > BLOB_BYTES_MAX as u64 {
            return Err(LogError::TooLarge {
                subject: BLOBS_BUCKET.to_owned(),
                bytes: usize::try_from(blob.bytes).unwrap_or(usize::MAX),
                bytes_max: BLOB_BYTES_MAX,
            });
        }
        match &self.home {
            Home::Nats(bucket) => timeout(TRANSFER_TIME, get_checked(&bucket.objects, blob))
                .await
                .map_err(|_| LogError::unavailable("read a large body", "it took too long"))?,
            Home::Memory(objects, _) => {
                let objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(objects.get(&blob.sha256).cloned())
            }
        }
    }
}

impl Bucket {
    async fn put_if_due(&self, blob: &BlobRef, content: &Bytes) -> Result<(), LogError> {
        // As NATS' own clients name it, who read it by `nats object get`.
        let meta_subject = format!("$O.{BLOBS_BUCKET}.M.{}", URL_SAFE.encode(&blob.sha256));
        if self.is_fresh(&meta_subject, blob.bytes).await? {
            return Ok(());
        }
        // The client library's own `put` removes the former copy of an object, for which no service has the right.
        // Its chunks go by age instead.
        let inbox = self.connection.client.new_inbox();
        let id = inbox.rsplit('.').next().unwrap_or(&inbox);
        let chunk_subject = format!("$O.{BLOBS_BUCKET}.C.{id}");
        let mut chunks = 0;
        let mut rest = content.clone();
        while !rest.is_empty() {
            let chunk = rest.split_to(CHUNK_BYTES.min(rest.len()));
            self.publish(chunk_subject.clone(), HeaderMap::new(), chunk)
                .await?;
            chunks += 1;
        }
        let meta = json!({
            "name": blob.sha256,
            "bucket": BLOBS_BUCKET,
            "nuid": id,
            "size": content.len(),
            "chunks": chunks,
            "mtime": (self.now)(),
            "digest": format!("SHA-256={}", URL_SAFE.encode(Sha256::digest(content))),
            "options": { "max_chunk_size": CHUNK_BYTES },
        });
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_ROLLUP, "sub");
        self.publish(meta_subject, headers, meta.to_string().into()).await
    }

    /// Whether the object is there, of this size, and will be for half of the time that objects are kept.
    async fn is_fresh(&self, meta_subject: &str, bytes: u64) -> Result<bool, LogError> {
        let unavailable = |error: String| LogError::unavailable("look for a large body", error);
        // Asked each time: an operator may change the age while services run.
        let stream = self
            .context()
            .get_stream(format!("OBJ_{BLOBS_BUCKET}"))
            .await
            .map_err(|error| unavailable(error.to_string()))?;
        let stored = match stream.direct_get_last_for_subject(meta_subject).await {
            Ok(stored) => stored,
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(unavailable(error.to_string())),
        };
        // What cannot be read is written anew.
        let meta = serde_json::from_slice::<Meta>(&stored.payload).ok();
        let max_age = stream.cached_info().config.max_age;
        // The server's time of it: it is the server that counts its age.
        let stored_at = Timestamp::from_millis(stored.time.unix_timestamp().saturating_mul(1000));
        let is_young = max_age.is_zero() || (self.now)().since(stored_at) < max_age / 2;
        Ok(is_young && meta.is_some_and(|meta| !meta.deleted && meta.size == bytes))
    }

    async fn publish(&self, subject: String, headers: HeaderMap, payload: Bytes) -> Result<(), LogError> {
        let sent = self.context().publish_with_headers(subject, headers, payload);
        let stored = match sent.await {
            Ok(acknowledged) => acknowledged.await,
            Err(error) => Err(error),
        };
        let Err(error) = stored else { return Ok(()) };
        let reason = error.to_string();
        if reason.contains("exceeded") || reason.contains("insufficient") {
            Err(LogError::Full {
                stream: format!("OBJ_{BLOBS_BUCKET}"),
                reason,
            })
        } else {
            Err(LogError::unavailable("store a large body", reason))
        }
    }

    fn context(&self) -> &Context {
        &self.connection.context
    }
}

async fn get_checked(store: &ObjectStore, blob: &BlobRef) -> Result<Option<Bytes>, LogError> {
    let object = match store.get(blob.sha256.as_str()).await {
        Ok(object) => object,
        Err(error) if error.kind() == GetErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LogError::unavailable("read a large body", error)),
    };
    let mut content = Vec::with_capacity(usize::try_from(blob.bytes).unwrap_or(0));
    // One byte more than it says, to see that there is more.
    let read = object.take(blob.bytes + 1).read_to_end(&mut content).await;
    read.map_err(|error| LogError::unavailable("read a large body", error))?;
    if sha256_hex(&content) != blob.sha256 {
        return Err(LogError::Damaged {
            what: format!("the object {}", blob.sha256),
            reason: format!("its {} bytes have another sha256", content.len()),
        });
    }
    Ok(Some(content.into()))
}
