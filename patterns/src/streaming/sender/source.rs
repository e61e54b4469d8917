use std::io;

use bytes::{BufMut, BytesMut};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt};

use crate::streaming::{
    ContentHash, StreamError,
    integrity::Hasher,
    wire::{Chunk, Close},
};

/// Where a payload is read from.
pub(super) enum Source {
    /// It can be read once.
    Once(Box<dyn AsyncRead + Send + Unpin>),
    /// It can go back.
    Seekable(Box<dyn ReadSeek>),
}

/// A source that can go back, of any type.
pub(super) trait ReadSeek: Send {
    fn read(&mut self) -> &mut (dyn AsyncRead + Send + Unpin);
    fn seek(&mut self, offset: u64) -> BoxFuture<'_, io::Result<u64>>;
}

impl<T: AsyncRead + AsyncSeek + Send + Unpin> ReadSeek for T {
    fn read(&mut self) -> &mut (dyn AsyncRead + Send + Unpin) {
        self
    }

    fn seek(&mut self, offset: u64) -> BoxFuture<'_, io::Result<u64>> {
        Box::pin(AsyncSeekExt::seek(self, io::SeekFrom::Start(offset)))
    }
}

impl Source {
    pub(super) const fn is_seekable(&self) -> bool {
        matches!(self, Self::Seekable(_))
    }

    fn read(&mut self) -> &mut (dyn AsyncRead + Send + Unpin) {
        match self {
            Self::Once(source) => source,
            Self::Seekable(source) => source.read(),
        }
    }
}

/// Cuts a source into chunks and hashes every byte of it once, however often it goes back.
pub(super) struct Chunks {
    source: Source,
    chunk_size: u32,
    declared: Option<u64>,
    /// The chunk that comes next.
    next: u64,
    partial: BytesMut,
    hasher: Hasher,
    hashed: u64,
    close: Option<Close>,
}

impl Chunks {
    pub(super) fn new(source: Source, chunk_size: u32, declared: Option<u64>) -> Self {
        Self {
            source,
            chunk_size,
            declared,
            next: 0,
            partial: BytesMut::new(),
            hasher: Hasher::default(),
            hashed: 0,
            close: None,
        }
    }

    /// The next chunk; nothing at the end. Cancellation safe.
    ///
    /// It fails when the source does, and when it has not the length that was declared.
    pub(super) async fn next(&mut self) -> Result<Option<Chunk>, StreamError> {
        let size = self.chunk_size as usize;
        if self.partial.capacity() < size {
            self.partial.reserve(size - self.partial.len());
        }
        while self.partial.len() < size {
            let room = size - self.partial.len();
            let mut room = (&mut self.partial).limit(room);
            let read = self.source.read().read_buf(&mut room).await;
            if read.map_err(|error| StreamError::io("reading the source", error))? == 0 {
                break;
            }
        }
        let body = self.partial.split().freeze();
        let ended = body.len() < size;
        let length = self.next * u64::from(self.chunk_size) + body.len() as u64;
        self.check_length(length, ended)?;
        if self.next >= self.hashed && !body.is_empty() {
            self.hasher.update(&body);
            self.hashed = self.next + 1;
        }
        let chunk = (!body.is_empty()).then(|| Chunk::new(self.next, self.chunk_size, body));
        self.next += u64::from(chunk.is_some());
        if ended {
            let (chunks, hash) = (self.next, self.hasher.so_far());
            self.close = Some(Close { chunks, length, hash });
        }
        Ok(chunk)
    }

    fn check_length(&self, length: u64, ended: bool) -> Result<(), StreamError> {
        let Some(declared) = self.declared else { return Ok(()) };
        if length > declared || (ended && length < declared) {
            let message = format!("it was said to have {declared} bytes, and it has {length}");
            let error = io::Error::new(io::ErrorKind::InvalidInput, message);
            return Err(StreamError::io("reading the source", error));
        }
        Ok(())
    }

    /// The end of the payload, when it was read.
    pub(super) const fn close(&self) -> Option<&Close> {
        self.close.as_ref()
    }

    /// Goes back to a chunk that was read before.
    ///
    /// Not cancellation safe: call it again.
    pub(super) async fn back_to(&mut self, chunk: u64) -> Result<(), StreamError> {
        let offset = chunk * u64::from(self.chunk_size);
        let Source::Seekable(source) = &mut self.source else {
            return Err(StreamError::NotResumable { offset });
        };
        let sought = source.seek(offset).await;
        sought.map_err(|error| StreamError::io("going back in the source", error))?;
        self.partial.clear();
        self.next = chunk;
        self.close = None;
        Ok(())
    }
}

/// What was sent, and that it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The id of the stream.
    pub id: uuid::Uuid,
    /// Its length in bytes.
    pub length: u64,
    /// Its hash, which the receiver has compared.
    pub hash: ContentHash,
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use bytes::Bytes;

    use super::*;

    async fn bodies(chunks: &mut Chunks) -> Vec<Bytes> {
        let mut bodies = Vec::new();
        while chunks.close().is_none() {
            bodies.extend(chunks.next().await.unwrap().map(|chunk| chunk.body));
        }
        bodies
    }

    #[tokio::test]
    async fn a_payload_is_hashed_once_however_often_it_is_read() {
        for length in [0_usize, 1, 7, 8, 9, 16, 100] {
            let payload: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
            let source = Source::Seekable(Box::new(Cursor::new(payload.clone())));
            let mut chunks = Chunks::new(source, 8, Some(length as u64));
            assert_eq!(bodies(&mut chunks).await.concat(), payload);
            let close = *chunks.close().unwrap();
            let expected = Close {
                chunks: length.div_ceil(8) as u64,
                length: length as u64,
                hash: ContentHash::of(&payload),
            };
            assert_eq!(close, expected);
            for back in 0..close.chunks {
                chunks.back_to(back).await.unwrap();
                assert_eq!(bodies(&mut chunks).await.concat(), payload[back as usize * 8..]);
                assert_eq!(chunks.close(), Some(&close));
            }
        }
    }

    #[tokio::test]
    async fn a_source_that_is_longer_or_shorter_than_it_was_said_to_be_is_an_error() {
        for declared in [99, 101] {
            let source = Source::Once(Box::new(Cursor::new(vec![1; 100])));
            let mut chunks = Chunks::new(source, 8, Some(declared));
            let error = loop {
                match chunks.next().await {
                    Ok(_) => assert!(chunks.close().is_none()),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, StreamError::Io { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_source_that_is_read_once_does_not_go_back() {
        let source = Source::Once(Box::new(Cursor::new(vec![1; 100])));
        let mut chunks = Chunks::new(source, 8, None);
        bodies(&mut chunks).await;
        let error = chunks.back_to(2).await.unwrap_err();
        assert!(matches!(error, StreamError::NotResumable { offset: 16 }));
    }
}
