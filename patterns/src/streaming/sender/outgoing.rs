use std::{collections::BTreeMap, fmt, fs::Metadata, io, path::Path};

use tokio::io::{AsyncRead, AsyncSeek};
use uuid::Uuid;

use super::source::Source;
use crate::streaming::StreamError;

/// A payload to send, and what its receiver is told of it.
///
/// # Example: from memory, with a name
///
/// ```
/// use postrider_patterns::Outgoing;
///
/// let report = Outgoing::seekable(std::io::Cursor::new("sku,count\ncd-1,17\n"))
///     .with_name("stock.csv")
///     .with_content_type("text/csv")
///     .with_metadata("day", "2026-01-01");
/// ```
#[must_use = "send it"]
pub struct Outgoing {
    pub(super) source: Source,
    pub(super) id: Option<Uuid>,
    pub(super) length: Option<u64>,
    pub(super) name: Option<String>,
    pub(super) content_type: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl Outgoing {
    fn new(source: Source) -> Self {
        let metadata = BTreeMap::new();
        Self { source, id: None, length: None, name: None, content_type: None, metadata }
    }

    /// What `reader` gives until its end. It is read once: chunks under way are kept and sent again
    /// when they are lost, but a receiver that has to begin anew ends the transfer with
    /// [`StreamError::NotResumable`].
    pub fn reader(reader: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self::new(Source::Once(Box::new(reader)))
    }

    /// What `source` gives from its start until its end. It is read again from where a receiver
    /// needs it, so that a transfer survives a restart of either side.
    pub fn seekable(source: impl AsyncRead + AsyncSeek + Send + Unpin + 'static) -> Self {
        Self::new(Source::Seekable(Box::new(source)))
    }

    /// A file, with its length, and with its name where that is text. Cancellation safe.
    ///
    /// # Errors
    ///
    /// [`StreamError::Io`] when it cannot be opened, and for what is no regular file: a directory, or
    /// a pipe or device, which has no length and may never end. Send the latter by
    /// [`reader`](Self::reader).
    pub async fn file(path: impl AsRef<Path>) -> Result<Self, StreamError> {
        let path = path.as_ref();
        let opened = async {
            // Before it is opened: to open a pipe waits for who writes to it.
            regular(&tokio::fs::metadata(path).await?)?;
            let file = tokio::fs::File::open(path).await?;
            let about = file.metadata().await?;
            regular(&about)?;
            Ok((file, about.len()))
        };
        let (file, length) = opened
            .await
            .map_err(|error| StreamError::io(format!("opening '{}'", path.display()), error))?;
        let mut outgoing = Self::seekable(file).with_length(length);
        outgoing.name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        Ok(outgoing)
    }

    /// The id of the stream. A sender that was restarted takes a transfer up again by sending the
    /// same payload under the same id; the receiver says what it has of it. Default: a new one.
    pub const fn with_id(mut self, id: Uuid) -> Self {
        self.id = Some(id);
        self
    }

    /// The length in bytes, so that progress has a measure and the receiver can refuse early. When
    /// the source has another length, the transfer fails. Default: not known, of a file its own.
    pub const fn with_length(mut self, bytes: u64) -> Self {
        self.length = Some(bytes);
        self
    }

    /// A name for the payload. Default: none, of a file its own.
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The media type of the payload. Default: none.
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// Adds anything else that the receiver should know. All of the description together has at
    /// most 64 KiB.
    pub fn with_metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }
}

fn regular(about: &Metadata) -> io::Result<()> {
    if about.is_file() {
        return Ok(());
    }
    if about.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory, not a file"));
    }
    let why = "it is no regular file but a pipe, socket or device; send it by Outgoing::reader";
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("id", &self.id)
            .field("length", &self.length)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
