//! `POST /v1/snapshot`: asks the daemon for a copy of its data directory. The edge knows no files; it
//! hands a path on and says what became of it.
//!
//! Runs on the ops runtime, the work on its blocking pool; the answer comes when the copy is synced, or
//! failed and was removed. A client that does not wait for it changes nothing about that.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State as FromState;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::admin::{Answered, Shared, json};
use super::failures::{BodyRead, malformed, read};
use super::problem::{Problem, Slug};

/// A snapshot, as it is answered and as its `snapshot.json` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Snapshot {
    /// Where it is.
    #[schema(value_type = String)]
    pub dir: PathBuf,
    /// When it was begun, RFC 3339.
    #[schema(format = DateTime)]
    pub time: String,
    /// The version of the daemon that took it.
    pub version: &'static str,
    /// The oldest event its log holds.
    pub first_offset: u64,
    /// The offset after its newest event: it holds everything that was accepted before it began.
    pub next_offset: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
    /// Files of archives and of the quarantine in it, most of which share their bytes with the original.
    pub files: u64,
    /// Directories of sinks that lie outside of the data directory and are not in it.
    #[schema(value_type = Vec<String>)]
    pub left_out: Vec<PathBuf>,
}

/// Why there is no snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The directory cannot be one.
    #[error("{0}")]
    Refused(String),
    /// There is something in the directory, or another snapshot is being taken.
    #[error("{0}")]
    Conflict(String),
    /// The disk has no room for it.
    #[error("{0}")]
    NoRoom(String),
    /// Something failed; what was there of it was removed.
    #[error("{0}")]
    Failed(String),
}

/// Takes a snapshot into a directory. Blocks until it is done.
pub type TakeSnapshot = dyn Fn(PathBuf) -> Result<Snapshot, SnapshotError> + Send + Sync;

impl From<SnapshotError> for Problem {
    fn from(error: SnapshotError) -> Self {
        let slug = match &error {
            SnapshotError::Refused(_) => Slug::Malformed,
            SnapshotError::Conflict(_) => Slug::Conflict,
            SnapshotError::NoRoom(_) => Slug::StorageFull,
            SnapshotError::Failed(_) => Slug::Internal,
        };
        Problem::new(slug, error.to_string())
    }
}

/// Where a snapshot is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SnapshotRequest)]
struct Asked {
    /// An absolute path on the daemon's machine, where nothing is yet.
    #[schema(value_type = String)]
    dir: PathBuf,
}

/// Copies the data directory of the running daemon, consistently.
///
/// Answered once the copy is on the disk.
#[utoipa::path(
    post,
    path = "/v1/snapshot",
    tag = "health",
    operation_id = "take_snapshot",
    request_body = Asked,
    responses((status = 200, description = "The copy.", body = Snapshot))
)]
pub(super) async fn take(FromState(shared): FromState<Shared>, body: Body) -> Answered {
    let bytes = read(body, shared.body_timeout).await?;
    let work = async {
        let asked: Asked = serde_json::from_slice(&bytes)
            .map_err(|error| malformed(format!(r#"expected {{"dir":"/an/absolute/path"}}: {error}"#)))?;
        shared.app.open_queue()?;
        let services = Arc::clone(shared.app.services()?);
        let taken = spawn_blocking(move || (services.snapshot)(asked.dir)).await;
        let taken = taken
            .map_err(|failed| Problem::new(Slug::Internal, format!("the snapshot failed: {failed}")))??;
        json(&taken)
    };
    let mut answer = work.await.unwrap_or_else(Problem::into_answer);
    answer.extensions_mut().insert(BodyRead);
    Ok(answer)
}
