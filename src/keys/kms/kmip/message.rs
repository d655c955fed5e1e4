//! Requests and answers as a whole: versions, batches, refusals.

use zeroize::Zeroizing;

use super::operation::Operation;
use super::ttlv::{Nonsense, Reader, Writer};
use super::uri::Version;

/// The tags of what is sent or looked at.
pub(super) mod tag {
    pub(in super::super) const REQUEST_MESSAGE: u32 = 0x42_0078;
    pub(in super::super) const RESPONSE_MESSAGE: u32 = 0x42_007b;
    pub(in super::super) const REQUEST_HEADER: u32 = 0x42_0077;
    pub(in super::super) const RESPONSE_HEADER: u32 = 0x42_007a;
    pub(in super::super) const PROTOCOL_VERSION: u32 = 0x42_0069;
    pub(in super::super) const PROTOCOL_VERSION_MAJOR: u32 = 0x42_006a;
    pub(in super::super) const PROTOCOL_VERSION_MINOR: u32 = 0x42_006b;
    pub(in super::super) const MAXIMUM_RESPONSE_SIZE: u32 = 0x42_0050;
    pub(in super::super) const BATCH_ERROR_CONTINUATION_OPTION: u32 = 0x42_000e;
    pub(in super::super) const BATCH_COUNT: u32 = 0x42_000d;
    pub(in super::super) const BATCH_ITEM: u32 = 0x42_000f;
    pub(in super::super) const OPERATION: u32 = 0x42_005c;
    pub(in super::super) const UNIQUE_BATCH_ITEM_ID: u32 = 0x42_0093;
    pub(in super::super) const REQUEST_PAYLOAD: u32 = 0x42_0079;
    pub(in super::super) const RESPONSE_PAYLOAD: u32 = 0x42_007c;
    pub(in super::super) const RESULT_STATUS: u32 = 0x42_007f;
    pub(in super::super) const RESULT_REASON: u32 = 0x42_007e;
    pub(in super::super) const RESULT_MESSAGE: u32 = 0x42_007d;
    pub(in super::super) const UNIQUE_IDENTIFIER: u32 = 0x42_0094;
    pub(in super::super) const CRYPTOGRAPHIC_PARAMETERS: u32 = 0x42_002b;
    pub(in super::super) const BLOCK_CIPHER_MODE: u32 = 0x42_0011;
    pub(in super::super) const CRYPTOGRAPHIC_ALGORITHM: u32 = 0x42_0028;
    pub(in super::super) const TAG_LENGTH: u32 = 0x42_00ce;
    pub(in super::super) const DATA: u32 = 0x42_00c2;
    pub(in super::super) const IV: u32 = 0x42_003d;
    pub(in super::super) const ASSOCIATED_DATA: u32 = 0x42_00fe;
    pub(in super::super) const AUTHENTICATION_TAG: u32 = 0x42_00ff;
    pub(in super::super) const ATTRIBUTE: u32 = 0x42_0008;
    pub(in super::super) const ATTRIBUTE_NAME: u32 = 0x42_000a;
    pub(in super::super) const ATTRIBUTE_VALUE: u32 = 0x42_000b;
    pub(in super::super) const ATTRIBUTES: u32 = 0x42_0125;
    pub(in super::super) const ATTRIBUTE_REFERENCE: u32 = 0x42_013b;
    pub(in super::super) const NAME: u32 = 0x42_0053;
    pub(in super::super) const NAME_VALUE: u32 = 0x42_0055;
    pub(in super::super) const NAME_TYPE: u32 = 0x42_0054;
    pub(in super::super) const STATE: u32 = 0x42_008d;
    pub(in super::super) const OBJECT_TYPE: u32 = 0x42_0057;
    pub(in super::super) const INITIAL_DATE: u32 = 0x42_0039;
    pub(in super::super) const LINK: u32 = 0x42_004a;
    pub(in super::super) const LINK_TYPE: u32 = 0x42_004b;
    pub(in super::super) const LINKED_OBJECT: u32 = 0x42_004c;
    pub(in super::super) const QUERY_FUNCTION: u32 = 0x42_0074;
    pub(in super::super) const VENDOR: u32 = 0x42_009d;
}

/// The most bytes an answer may have: one of a full batch has a third of it.
pub(super) const LARGEST_ANSWER: usize = 64 * 1024;
/// Room for a request that carries one data key and the longest key id.
const USUAL_REQUEST: usize = 4096;
/// Go on with the rest of a batch after an item that failed.
const CONTINUE: u32 = 1;
const SUCCESS: u32 = 0;

/// Why the server did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: u32,
    /// The server's words.
    pub(super) text: String,
}

/// What came back: for each operation its result, or one refusal of all.
pub(super) type Answers<'a> = Result<Vec<Result<Reader<'a>, Refusal>>, Refusal>;

/// One request for all `operations`.
pub(super) fn encode(version: Version, operations: &[Operation<'_>]) -> Zeroizing<Vec<u8>> {
    let mut writer = Writer::with_capacity(USUAL_REQUEST * operations.len());
    writer.structure(tag::REQUEST_MESSAGE, |message| {
        message.structure(tag::REQUEST_HEADER, |header| {
            write_version(header, version);
            header.integer(tag::MAXIMUM_RESPONSE_SIZE, LARGEST_ANSWER as i32);
            if operations.len() > 1 {
                header.enumeration(tag::BATCH_ERROR_CONTINUATION_OPTION, CONTINUE);
            }
            header.integer(tag::BATCH_COUNT, operations.len() as i32);
        });
        for (index, operation) in operations.iter().enumerate() {
            message.structure(tag::BATCH_ITEM, |item| {
                item.enumeration(tag::OPERATION, operation.code());
                if operations.len() > 1 {
                    item.bytes(tag::UNIQUE_BATCH_ITEM_ID, &(index as u32).to_be_bytes());
                }
                item.structure(tag::REQUEST_PAYLOAD, |payload| {
                    operation.write(payload, version);
                });
            });
        }
    });
    writer.finish()
}

pub(super) fn write_version(writer: &mut Writer, version: Version) {
    let (major, minor) = version.numbers();
    writer.structure(tag::PROTOCOL_VERSION, |numbers| {
        numbers.integer(tag::PROTOCOL_VERSION_MAJOR, major);
        numbers.integer(tag::PROTOCOL_VERSION_MINOR, minor);
    });
}

/// The answer to a request for `operations`.
pub(super) fn decode<'a>(
    bytes: &'a [u8],
    operations: &[Operation<'_>],
) -> Result<Answers<'a>, Nonsense> {
    let message = Reader::new(bytes)
        .need(tag::RESPONSE_MESSAGE)?
        .structure()?;
    message.need(tag::RESPONSE_HEADER)?.structure()?;
    let items = message.all(tag::BATCH_ITEM)?;
    let count = operations.len();
    let mut results: Vec<Option<Result<Reader<'a>, Refusal>>> = vec![None; count];
    for item in &items {
        let item = item.structure()?;
        let result = result_of(item)?;
        let operation = item.find(tag::OPERATION)?;
        if let (None, Err(refusal), 1) = (operation, &result, items.len()) {
            // Not of an operation, but of the whole request.
            return Ok(Err(refusal.clone()));
        }
        let index = match count {
            1 => 0,
            _ => index_of(item)?,
        };
        let asked = operations
            .get(index)
            .ok_or(Nonsense("it answers what was not asked"))?;
        let named = operation.map(|item| item.enumeration()).transpose()?;
        if named.is_some_and(|code| code != asked.code()) {
            return Err(Nonsense("it answers another operation"));
        }
        if results[index].replace(result).is_some() {
            return Err(Nonsense("it answers something twice"));
        }
    }
    let results: Option<Vec<_>> = results.into_iter().collect();
    results
        .map(Ok)
        .ok_or(Nonsense("it has not as many answers as questions"))
}

fn result_of(item: Reader<'_>) -> Result<Result<Reader<'_>, Refusal>, Nonsense> {
    let status = item.need(tag::RESULT_STATUS)?.enumeration()?;
    if status == SUCCESS {
        return item.need(tag::RESPONSE_PAYLOAD)?.structure().map(Ok);
    }
    let reason = item.find(tag::RESULT_REASON)?;
    let text = item.find(tag::RESULT_MESSAGE)?;
    Ok(Err(Refusal {
        reason: reason.map_or(Ok(0), |item| item.enumeration())?,
        text: text.map_or(Ok(""), |item| item.text())?.to_owned(),
    }))
}

fn index_of(item: Reader<'_>) -> Result<usize, Nonsense> {
    let id = item.need(tag::UNIQUE_BATCH_ITEM_ID)?.bytes()?;
    let id: [u8; 4] = id
        .try_into()
        .map_err(|_| Nonsense("it answers what was not asked"))?;
    Ok(u32::from_be_bytes(id) as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPERATIONS: [Operation<'_>; 2] = [
        Operation::GetAttributes { id: "1" },
        Operation::GetAttributes { id: "2" },
    ];

    type Item<'a> = (Option<u32>, Option<u32>, Result<&'a str, (u32, &'a str)>);

    fn answer(items: &[Item<'_>]) -> Vec<u8> {
        let mut writer = Writer::with_capacity(1024);
        writer.structure(tag::RESPONSE_MESSAGE, |message| {
            message.structure(tag::RESPONSE_HEADER, |header| {
                write_version(header, Version::V1_4);
                header.integer(tag::BATCH_COUNT, items.len() as i32);
            });
            for (operation, id, result) in items {
                message.structure(tag::BATCH_ITEM, |item| {
                    if let Some(code) = operation {
                        item.enumeration(tag::OPERATION, *code);
                    }
                    if let Some(id) = id {
                        item.bytes(tag::UNIQUE_BATCH_ITEM_ID, &id.to_be_bytes());
                    }
                    item.enumeration(tag::RESULT_STATUS, u32::from(result.is_err()));
                    match result {
                        Ok(id) => item.structure(tag::RESPONSE_PAYLOAD, |payload| {
                            payload.text(tag::UNIQUE_IDENTIFIER, id);
                        }),
                        Err((reason, text)) => {
                            item.enumeration(tag::RESULT_REASON, *reason);
                            item.text(tag::RESULT_MESSAGE, text);
                        }
                    }
                });
            }
        });
        writer.finish().to_vec()
    }

    #[test]
    fn a_batch_is_answered_item_by_item_in_any_order() {
        let bytes = answer(&[
            (Some(0xb), Some(1), Err((12, "no"))),
            (Some(0xb), Some(0), Ok("1")),
        ]);
        let results = decode(&bytes, &OPERATIONS).unwrap().unwrap();
        let id = results[0].as_ref().unwrap().need(tag::UNIQUE_IDENTIFIER);
        assert_eq!(id.unwrap().text(), Ok("1"));
        let refusal = results[1].as_ref().unwrap_err();
        assert_eq!((refusal.reason, refusal.text.as_str()), (12, "no"));
    }

    #[test]
    fn a_refusal_of_the_whole_request_is_one() {
        let bytes = answer(&[(None, None, Err((3, "who are you?")))]);
        let refusal = decode(&bytes, &OPERATIONS).unwrap().unwrap_err();
        assert_eq!(refusal.reason, 3);
    }

    #[test]
    fn answers_to_other_questions_are_nonsense() {
        let get = Some(0xb);
        let bad: [&[Item<'_>]; 6] = [
            &[],
            &[(get, Some(0), Ok("1"))],
            &[(get, Some(0), Ok("1")), (get, Some(0), Ok("1"))],
            &[(get, Some(0), Ok("1")), (get, Some(2), Ok("1"))],
            &[(get, Some(0), Ok("1")), (Some(0xa), Some(1), Ok("1"))],
            &[(get, None, Ok("1")), (get, None, Ok("1"))],
        ];
        for items in bad {
            assert!(decode(&answer(items), &OPERATIONS).is_err(), "{items:?}");
        }
        let request = encode(Version::V2_0, &OPERATIONS);
        assert!(decode(&request, &OPERATIONS).is_err());
    }

    proptest! {
        #[test]
        fn damaged_answers_never_panic(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            length in any::<prop::sample::Index>(),
        ) {
            let mut bytes = answer(&[
                (Some(0xb), Some(1), Err((12, "no"))),
                (Some(0xb), Some(0), Ok("1")),
            ]);
            for (index, byte) in damage {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = decode(&bytes, &OPERATIONS);
            let _ = decode(&bytes[..length.index(bytes.len())], &OPERATIONS);
        }
    }
}
