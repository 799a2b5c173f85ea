//! Protocol buffers as prost reads and writes them, with bounds. Without them a repeated field with
//! a few bytes per item would take many times as much memory, and the buffer of a reply would grow
//! by doubling.

use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::MAX_KEYS;

/// Named in `build.rs`.
pub struct Bounded<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Bounded<T, U> {
    fn default() -> Self {
        Bounded(PhantomData)
    }
}

impl<T, U> Codec for Bounded<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<T: Message, U> Encoder for Bounded<T, U> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.encoded_len());
        item.encode(buffer)
            .map_err(|error| Status::internal(format!("encode the reply: {error}")))
    }
}

impl<T, U: Message + Default> Decoder for Bounded<T, U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let malformed = |error| Status::invalid_argument(format!("decode the request: {error}"));
        check_fields(buffer.chunk())?;
        U::decode(buffer).map(Some).map_err(malformed)
    }
}

/// Counts the fields of a message, which is in one piece here.
fn check_fields(mut message: &[u8]) -> Result<(), Status> {
    let malformed = |error| Status::invalid_argument(format!("decode the request: {error}"));
    let mut fields = 0;
    while !message.is_empty() {
        fields += 1;
        if fields > MAX_KEYS {
            return Err(Status::invalid_argument(format!("at most {MAX_KEYS} keys at once")));
        }
        let (tag, wire_type) = decode_key(&mut message).map_err(malformed)?;
        skip_field(wire_type, tag, &mut message, DecodeContext::default()).map_err(malformed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::kvs2::MultiGetRequest;
    use super::*;

    #[test]
    fn more_keys_than_may_be_asked_for_take_no_memory() {
        let ask = |keys| {
            MultiGetRequest {
                keys: vec![b"".to_vec().into(); keys],
            }
            .encode_to_vec()
        };
        assert!(check_fields(&ask(MAX_KEYS)).is_ok());
        let refused = check_fields(&ask(MAX_KEYS + 1)).expect_err("too many");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(check_fields(b"\x0a\x05abc").is_err(), "cut off");
    }
}
