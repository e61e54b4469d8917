//! The trace that a message belongs to, as W3C Trace Context writes it.

use std::{fmt, str::FromStr};

use postrider_core::{Env, HeaderValue, Message};

use crate::headers;

/// The longest `tracestate` that is handed on: what every system must take.
const MOST_STATE_BYTES: usize = 512;

/// A place in a distributed trace: the trace, and the span in it that what follows belongs to.
///
/// Its text form, by [`Display`](fmt::Display) and [`FromStr`], is that of the header `traceparent`
/// of W3C Trace Context, so that it can be handed on to what is called by other ways than messages.
/// Of versions that are not known yet the parts of version 00 are read; what is written is version
/// 00.
///
/// # Example
///
/// ```
/// use postrider_patterns::TraceContext;
///
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let context: TraceContext = text.parse()?;
/// assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
/// assert_eq!(context.to_string(), text);
/// # Ok::<(), postrider_patterns::NoTraceContext>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    flags: u8,
}

/// A text that is no [`TraceContext`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no trace context by W3C")]
pub struct NoTraceContext;

impl TraceContext {
    /// That of a message, if it has one that is sound.
    #[must_use]
    pub fn of(message: &Message) -> Option<Self> {
        message.headers.get(headers::TRACEPARENT)?.as_text()?.parse().ok()
    }

    /// The first span of a new trace, which is sampled.
    pub(crate) fn new(env: &Env) -> Self {
        let trace = (u128::from(env.random()) << 64) | u128::from(env.random());
        Self { trace: trace.max(1), span: env.random().max(1), flags: 1 }
    }

    /// A new span in the same trace.
    pub(crate) fn child(self, env: &Env) -> Self {
        Self { span: env.random().max(1), ..self }
    }

    /// The id of the trace: 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// The id of the span: 16 hexadecimal digits.
    #[must_use]
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span)
    }

    /// Whether whoever began the trace records it.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    pub(crate) fn write(self, message: &mut Message) {
        message.headers.set(headers::TRACEPARENT, self.to_string());
    }

    /// Hands on what systems on the way have noted beside the trace context.
    pub(crate) fn copy_state(from: &Message, to: &mut Message) {
        let state = from.headers.get(headers::TRACESTATE).and_then(HeaderValue::as_text);
        if let Some(state) = state.filter(|state| state.len() <= MOST_STATE_BYTES) {
            to.headers.set(headers::TRACESTATE, state.to_owned());
        }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = NoTraceContext;

    fn from_str(text: &str) -> Result<Self, NoTraceContext> {
        let mut parts = text.split('-');
        let version = hex(parts.next(), 2)?;
        let trace = hex(parts.next(), 32)?;
        let span = u64::try_from(hex(parts.next(), 16)?).map_err(|_| NoTraceContext)?;
        let flags = u8::try_from(hex(parts.next(), 2)?).map_err(|_| NoTraceContext)?;
        let has_more = parts.next().is_some();
        if version == 0xff || (version == 0 && has_more) || trace == 0 || span == 0 {
            return Err(NoTraceContext);
        }
        Ok(Self { trace, span, flags })
    }
}

/// So many lower-case digits.
fn hex(part: Option<&str>, digits: usize) -> Result<u128, NoTraceContext> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let part = part.filter(|part| part.len() == digits && part.bytes().all(is_digit));
    u128::from_str_radix(part.ok_or(NoTraceContext)?, 16).map_err(|_| NoTraceContext)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let env = Env::simulated(1);
        let (root, now) = (TraceContext::new(&env), Message::new(""));
        let child = root.child(&env);
        assert_eq!(root.to_string().parse(), Ok(root));
        assert_eq!(child.trace_id(), root.trace_id());
        assert_ne!(child.span_id(), root.span_id());
        assert!(child.is_sampled());
        let mut message = now;
        assert_eq!(TraceContext::of(&message), None);
        child.write(&mut message);
        assert_eq!(TraceContext::of(&message), Some(child));
    }

    #[test]
    fn what_is_not_sound_is_none() {
        let sound = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
        let read = |text: &str| text.parse::<TraceContext>();
        assert!(read(&format!("00-{sound}-00")).is_ok_and(|context| !context.is_sampled()));
        // A later version may have more parts.
        assert!(read(&format!("01-{sound}-01-more")).is_ok());
        let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let zero_span = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16));
        for text in [
            "",
            "00",
            &format!("ff-{sound}-01"),
            &format!("00-{sound}-01-more"),
            &format!("00-{sound}"),
            &format!("00-{sound}-1"),
            &format!("00-{}-01", sound.to_uppercase()),
            &format!("00-{sound}-+1"),
            &format!("00-{sound}-ü"),
            &zero_trace,
            &zero_span,
        ] {
            assert_eq!(read(text), Err(NoTraceContext), "{text}");
        }
    }

    #[test]
    fn a_state_is_handed_on_unless_it_is_too_long() {
        let handed_on = |state: String| {
            let from = Message::new("").with_header(headers::TRACESTATE, state);
            let mut to = Message::new("");
            TraceContext::copy_state(&from, &mut to);
            to.headers.get(headers::TRACESTATE).is_some()
        };
        assert!(handed_on("rojo=00f067aa0ba902b7".to_owned()));
        assert!(!handed_on("x".repeat(MOST_STATE_BYTES + 1)));
    }
}
