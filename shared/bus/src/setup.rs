//! Makes what the table of [`crate::topology`] lists, and checks that it is there.
//!
//! Invariant: nothing is deleted; what is there and cannot be brought to the table is named.

use std::time::Duration;

use async_nats::jetstream::{self, ErrorCode, consumer::pull, context::GetStreamErrorKind, stream};

use crate::{
    connect::Connection,
    topology::{
        BLOBS_BUCKET, DURABLES, Durable, STARTED_BUCKET, Sizes, StreamId, TRIALS_BUCKET, WORKFLOWS_BUCKET,
        blobs_config, bucket_configs, consumer_config, stream_config,
    },
};

/// Why the table could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// Something of that name is there that was made otherwise.
    #[error(
        "{name} exists with {setting} {found}, and {needed} is needed, which cannot be changed: back it up and remove it (`nats stream rm {name}`), then run `fist nats init` again"
    )]
    Incompatible {
        /// The stream's name.
        name: String,
        /// Which setting.
        setting: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        needed: String,
    },
    /// The server has not enough room.
    #[error(
        "NATS has not the storage that {name} asks for ({reason}): give the server more (`max_file_store`), or lower `nats.log_bytes_max`, `nats.alerts_bytes_max` and `nats.blobs_bytes_max`"
    )]
    NoRoom {
        /// The stream's name.
        name: String,
        /// The server's words.
        reason: String,
    },
    /// The server refuses for another reason.
    #[error("NATS refused to set up {name}: {reason}")]
    Refused {
        /// The stream's, bucket's or consumer's name.
        name: String,
        /// The server's words.
        reason: String,
    },
    /// Some of it is not there.
    #[error("NATS is not set up ({} missing): run `fist nats init`", missing.join(", "))]
    Missing {
        /// What is not there.
        missing: Vec<String>,
    },
}

/// Makes whatever of the table is not there, and brings what is there to `sizes`. Running it again changes
/// nothing; two at once do no harm.
///
/// # Errors
/// [`TopologyError`] names the stream and the setting.
pub async fn init(connection: &Connection, sizes: &Sizes) -> Result<(), TopologyError> {
    let context = &connection.context;
    for id in StreamId::ALL {
        make_stream(context, stream_config(id, sizes)).await?;
    }
    for config in bucket_configs(sizes) {
        let name = format!("KV_{}", config.bucket);
        let made = match context.get_stream(&name).await {
            Ok(found) => {
                resize(
                    context,
                    found.cached_info().config.clone(),
                    config.max_age,
                    config.max_bytes,
                    sizes,
                )
                .await
            }
            Err(_) => context
                .create_key_value(config)
                .await
                .map(drop)
                .map_err(|error| refused(&name, &error)),
        };
        made?;
    }
    let name = format!("OBJ_{BLOBS_BUCKET}");
    let blobs = blobs_config(sizes);
    match context.get_stream(&name).await {
        Ok(found) => {
            resize(
                context,
                found.cached_info().config.clone(),
                blobs.max_age,
                blobs.max_bytes,
                sizes,
            )
            .await?
        }
        Err(_) => {
            let made = context.create_object_store(blobs).await;
            made.map(drop).map_err(|error| refused(&name, &error))?;
        }
    }
    for durable in DURABLES {
        make_consumer(context, &durable, consumer_config(&durable)).await?;
    }
    Ok(())
}

/// Makes the consumer of a database of its own ([`crate::topology::store_writer`]). It goes by itself when
/// nobody used it for as long as messages stay in the log: made anew later, it reads all that is there.
///
/// # Errors
/// [`TopologyError`] names the consumer.
pub async fn init_store_writer(
    connection: &Connection,
    durable: &Durable,
    sizes: &Sizes,
) -> Result<(), TopologyError> {
    let config = pull::Config {
        inactive_threshold: sizes.log_max_age,
        ..consumer_config(durable)
    };
    make_consumer(&connection.context, durable, config).await
}

async fn make_consumer(
    context: &jetstream::Context,
    durable: &Durable,
    config: pull::Config,
) -> Result<(), TopologyError> {
    let stream = durable.stream.name();
    let made = context.create_consumer_on_stream(config, stream).await;
    made.map(drop)
        .map_err(|error| refused(&format!("the consumer {} of {stream}", durable.name), &error))
}

/// Whether everything of the table is there.
///
/// # Errors
/// [`TopologyError::Missing`] with all that is not; [`TopologyError::Refused`] when the server cannot say.
pub async fn check(connection: &Connection) -> Result<(), TopologyError> {
    let context = &connection.context;
    let streams = StreamId::ALL.map(|id| id.name().to_owned()).into_iter();
    // Whoever keeps a budget looks for its bucket: an installation without budgets may be older than that.
    let buckets = [WORKFLOWS_BUCKET, STARTED_BUCKET, TRIALS_BUCKET].map(|bucket| format!("KV_{bucket}"));
    let mut missing = Vec::new();
    for name in streams.chain(buckets).chain([format!("OBJ_{BLOBS_BUCKET}")]) {
        match context.get_stream(&name).await {
            Ok(_) => {}
            Err(error) if is_not_found(error.kind()) => missing.push(name),
            Err(error) => return Err(refused(&name, &error)),
        }
    }
    for durable in DURABLES {
        if missing.iter().any(|name| name == durable.stream.name()) {
            continue;
        }
        let name = format!("consumer {}", durable.name);
        let stream = durable.stream.name();
        let found = match context.get_stream_no_info(stream).await {
            Ok(stream) => stream.get_consumer::<pull::Config>(durable.name).await,
            Err(error) => return Err(refused(stream, &error)),
        };
        if found.is_err() {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(TopologyError::Missing { missing })
    }
}

fn is_not_found(kind: GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

async fn make_stream(context: &jetstream::Context, config: stream::Config) -> Result<(), TopologyError> {
    let name = config.name.clone();
    match context.get_stream(&name).await {
        Ok(found) => {
            let found = &found.cached_info().config;
            unchangeable(found, &config)?;
            // What an operator has set beyond the table stays: placement, republish, metadata, compression.
            let wanted = stream::Config {
                description: config.description,
                subjects: config.subjects,
                discard: config.discard,
                max_age: config.max_age,
                max_bytes: config.max_bytes,
                max_messages_per_subject: config.max_messages_per_subject,
                num_replicas: config.num_replicas,
                allow_direct: config.allow_direct,
                deny_delete: config.deny_delete,
                deny_purge: config.deny_purge,
                allow_rollup: config.allow_rollup,
                allow_message_schedules: config.allow_message_schedules,
                no_ack: config.no_ack,
                ..found.clone()
            };
            let updated = context.update_stream(wanted).await;
            updated.map(drop).map_err(|error| refused(&name, &error))
        }
        Err(error) if is_not_found(error.kind()) => {
            let created = context.create_stream(config).await;
            created.map(drop).map_err(|error| refused(&name, &error))
        }
        Err(error) => Err(refused(&name, &error)),
    }
}

/// Brings a bucket's stream to its size; everything else about it is the client library's.
async fn resize(
    context: &jetstream::Context,
    found: stream::Config,
    max_age: Duration,
    max_bytes: i64,
    sizes: &Sizes,
) -> Result<(), TopologyError> {
    let name = found.name.clone();
    let wanted = stream::Config {
        max_age,
        max_bytes,
        num_replicas: usize::from(sizes.replicas),
        ..found
    };
    context
        .update_stream(wanted)
        .await
        .map(drop)
        .map_err(|error| refused(&name, &error))
}

/// What the server never changes about a stream that exists.
fn unchangeable(found: &stream::Config, needed: &stream::Config) -> Result<(), TopologyError> {
    let incompatible = |setting: &'static str, found_value: String, needed_value: String| {
        if found_value == needed_value {
            Ok(())
        } else {
            Err(TopologyError::Incompatible {
                name: found.name.clone(),
                setting,
                found: found_value,
                needed: needed_value,
            })
        }
    };
    incompatible(
        "storage",
        format!("{:?}", found.storage),
        format!("{:?}", needed.storage),
    )?;
    incompatible(
        "retention",
        format!("{:?}", found.retention),
        format!("{:?}", needed.retention),
    )?;
    if found.mirror.is_some() || found.sources.as_ref().is_some_and(|sources| !sources.is_empty()) {
        return incompatible("source", "another stream".to_owned(), "none".to_owned());
    }
    Ok(())
}

fn refused(name: &str, error: &dyn std::error::Error) -> TopologyError {
    let reason = error.to_string();
    let name = name.to_owned();
    if reason.contains("insufficient storage")
        || reason.contains("insufficient memory")
        || reason.contains("resource limits exceeded")
    {
        TopologyError::NoRoom { name, reason }
    } else {
        TopologyError::Refused { name, reason }
    }
}
