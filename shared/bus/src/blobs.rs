//! Bodies over 64 KiB: objects named by the sha256 of their content.
//!
//! Invariants:
//! - An object is looked for before it is put, because putting an existing name removes what was there.
//! - What [`Blobs::get`] returns has the hash it was asked for.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::jetstream::object_store::{GetErrorKind, InfoErrorKind, ObjectStore};
use bytes::Bytes;
use protocol::BlobRef;
use sha2::{Digest, Sha256};
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{connect::Connection, log::LogError, topology::BLOBS_BUCKET};

/// The largest body that is put: what a spilled output may be, with room for its JSON.
pub const BLOB_BYTES_MAX: usize = 64 << 20;

/// How long one transfer may take.
const TRANSFER_TIME: Duration = Duration::from_secs(60);

/// The store of large bodies. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    home: Home,
}

#[derive(Clone)]
enum Home {
    Nats(Arc<ObjectStore>),
    Memory(Arc<Mutex<BTreeMap<String, Bytes>>>),
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
        match connection.context.get_object_store(BLOBS_BUCKET).await {
            Ok(store) => Ok(Self {
                home: Home::Nats(Arc::new(store)),
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
        Self {
            home: Home::Memory(Arc::default()),
        }
    }

    /// Stores `content`, if it is not there.
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
            Home::Nats(store) => {
                let put = timeout(TRANSFER_TIME, put_if_absent(store, &blob, &content)).await;
                put.map_err(|_| LogError::unavailable("store a large body", "it took too long"))??;
            }
            Home::Memory(objects) => {
                let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
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
            Home::Nats(store) => timeout(TRANSFER_TIME, get_checked(store, blob))
                .await
                .map_err(|_| LogError::unavailable("read a large body", "it took too long"))?,
            Home::Memory(objects) => {
                let objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(objects.get(&blob.sha256).cloned())
            }
        }
    }
}

async fn put_if_absent(store: &ObjectStore, blob: &BlobRef, content: &[u8]) -> Result<(), LogError> {
    match store.info(&blob.sha256).await {
        Ok(info) if !info.deleted && info.size as u64 == blob.bytes => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == InfoErrorKind::NotFound => {}
        Err(error) => return Err(LogError::unavailable("look for a large body", error)),
    }
    let mut reader = content;
    match store.put(blob.sha256.as_str(), &mut reader).await {
        Ok(_) => Ok(()),
        Err(error) => {
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
