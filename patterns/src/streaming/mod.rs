//! Large payloads through the broker, in bounded memory.
//!
//! A [`StreamSender`] sends what any [`AsyncRead`](tokio::io::AsyncRead) gives; a [`StreamReceiver`]
//! hands it to a handler, which reads it or saves it to a file. The payload travels in chunks of
//! 256 KiB, each with a checksum, over a queue of its own to one receiver; many transfers run at
//! once, and receivers of one service share the offers.
//!
//! - **Memory is bounded.** The receiver grants credit for a window of chunks as they are taken from
//!   it; a sender keeps no more than that. All transfers of one side share a budget of bytes. A
//!   declared length is only compared, never allocated for.
//! - **What arrives is what was sent.** A reader sees the end only after the BLAKE3 hash over the
//!   whole was compared, and an error otherwise. A file has its name only then.
//! - **Losses are made good.** Chunks that are lost with a connection are sent again, duplicates and
//!   disorder do no harm, and a receiver that is gone for 5 seconds is replaced by another of its
//!   service.
//! - **A restart need not begin anew.** A sender that sends the same payload under the same id, and
//!   a receiver that saves to the same file, go on where they were.
//! - **It ends.** With the receipt, which says that the handler is done; or with a [`StreamError`] on
//!   both sides: when either calls it off, when nothing is heard of the other for 30 seconds, when
//!   chunks stay missing, when something is corrupt.
//!
//! # Example: a payload to a reader
//!
//! ```
//! use std::{io::Cursor, sync::Arc, time::Duration};
//! use postrider_core::Transport;
//! use postrider_patterns::{Incoming, Outgoing, StreamReceiver, StreamSender};
//! use postrider_transport_inmemory::InMemory;
//! use tokio::io::AsyncReadExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
//! let receiver = StreamReceiver::new("archive")
//!     .on(|mut incoming: Incoming, _context| async move {
//!         let mut text = String::new();
//!         incoming.read_to_string(&mut text).await?;
//!         println!("{:?} has {} lines", incoming.name(), text.lines().count());
//!         Ok(())
//!     })
//!     .start(&transport)
//!     .await?;
//!
//! let sender = StreamSender::new(&transport).await?;
//! let report = Outgoing::seekable(Cursor::new("cd-1,17\ncd-2,4\n")).with_name("stock.csv");
//! let receipt = sender.send("archive", report).await?;
//! assert_eq!(receipt.length, 15);
//! receiver.stop(Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```

mod budget;
pub mod codes;
mod error;
mod integrity;
mod limits;
mod progress;
mod reassembly;
mod receiver;
mod sender;
mod wire;

pub use error::StreamError;
pub use integrity::{ContentHash, NoContentHash};
pub use progress::Progress;
pub use receiver::{Incoming, Saved, StreamReceiver};
pub use sender::{Outgoing, Receipt, StreamSender, StreamSenderBuilder, Transfer};
