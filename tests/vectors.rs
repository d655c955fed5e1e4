//! The on-disk format against vectors that `scripts/make-vectors` computed from
//! `docs/FORMAT.md` with an independent implementation of the cryptography.
//!
//! The files under `tests/vectors` never change for a format: what they hold
//! must stay readable for good.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use kmsfs::backing::{BackingFile, HostFile};
use kmsfs::content::replay::{Finder, replay};
use kmsfs::content::{
    self, ChangeTimes, ContentError, EncryptedFile, KeySource, ReadBuffer, VolumeContext,
};
use kmsfs::crypto::{DataKey, FileKey, NameCipher, Seal, Suite, VolumeKeys, sha256};
use kmsfs::format::config::VolumeConfig;
use kmsfs::format::header::{Header, Recipient};
use kmsfs::format::journal::{JournalPage, Record, RecordKind};
use kmsfs::format::meta::{Entry, MetaPage};
use kmsfs::format::{FormatError, Layout};
use kmsfs::keys::local::LocalProvider;
use kmsfs::keys::uri::KeyUri;
use kmsfs::keys::{KeyContext, KeyError, KeyProvider, NewKey, PassphraseSource, WrappedKey};
use kmsfs::types::{DirId, FileId, VolumeId};
use serde_json::Value;

macro_rules! vectors {
    ($name:literal) => {
        serde_json::from_str::<Value>(include_str!(concat!("vectors/", $name, ".json"))).unwrap()
    };
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| text(value).parse().unwrap())
}

fn hex(value: &Value) -> Vec<u8> {
    let decoded = data_encoding::HEXLOWER.decode(text(value).as_bytes());
    decoded.unwrap()
}

fn base64(value: &Value) -> Vec<u8> {
    let decoded = data_encoding::BASE64.decode(text(value).as_bytes());
    decoded.unwrap()
}

/// Base64 without the zeros at the end.
fn padded(value: &Value, len: usize) -> Vec<u8> {
    let mut bytes = base64(value);
    bytes.resize(len, 0);
    bytes
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    hex(value).try_into().unwrap()
}

fn data_key(value: &Value) -> DataKey {
    DataKey::from_bytes(&hex(value)).unwrap()
}

fn suite(value: &Value) -> Suite {
    Suite::from_number(number(value) as u16).unwrap()
}

fn layout(value: &Value) -> Layout {
    let size = |field: &str| number(&value[field]) as u32;
    // Format 1 has no such field.
    let cluster = value.get("cluster_size").map_or(1, |v| number(v) as u32);
    Layout::with_clusters(size("block_size"), size("head_size"), cluster).unwrap()
}

fn recipients(value: &Value) -> Vec<Recipient> {
    let recipient = |r: &Value| Recipient {
        key_uri: text(&r["key_uri"]).into(),
        key_version: text(&r["key_version"]).into(),
        algorithm: text(&r["algorithm"]).into(),
        iv: hex(&r["iv"]),
        ciphertext: hex(&r["ciphertext"]),
    };
    list(value).iter().map(recipient).collect()
}

#[test]
fn layouts() {
    for case in list(&vectors!("layout")) {
        let layout = layout(case);
        assert_eq!(layout.slot_size() as u64, number(&case["slot_size"]));
        let pair = |v: &Value| (number(&v[0]), number(&v[1]));
        for (plain, backing) in list(&case["plain_and_backing"]).iter().map(pair) {
            assert_eq!(layout.backing_len(plain), Some(backing));
            assert_eq!(layout.plain_len(backing), plain);
            assert!(layout.is_possible(backing));
        }
        for (index, offset) in list(&case["block_and_offset"]).iter().map(pair) {
            assert_eq!(layout.block_offset(index), offset);
        }
        for group in list(&case["group_offset_length"]) {
            let (number, offset) = pair(group);
            assert_eq!(layout.meta_offset(number), offset);
            assert_eq!(layout.meta_len(number) as u64, group[2].as_u64().unwrap());
        }
        for (backing, plain) in list(&case["impossible_backing_and_plain"]).iter().map(pair) {
            assert!(!layout.is_possible(backing));
            assert_eq!(layout.plain_len(backing), plain);
        }
    }
}

#[test]
fn headers() {
    for case in list(&vectors!("header")["headers"]) {
        let (suite, layout) = (suite(&case["suite"]), layout(case));
        let header = Header {
            suite: suite.number(),
            layout,
            sequence: number(&case["sequence"]),
            file: FileId(array(&case["file_id"])),
            volume: VolumeId(array(&case["volume_id"])),
            commitment: array(&case["commitment"]),
            recipients: recipients(&case["recipients"]),
        };
        let slot = base64(&case["slot"]);
        assert!(header.encode(sha256).unwrap() == slot, "{}", case["name"]);
        assert_eq!(
            Header::newest(&slot, layout, sha256),
            Ok(Some((0, header.clone())))
        );
        let sniffed = Header::sniff(&slot, sha256);
        assert_eq!(sniffed, Ok(Some((0, header.clone()))));
        let mut immutable = header.volume.0.to_vec();
        immutable.extend_from_slice(&(layout.block_size() as u32).to_le_bytes());
        immutable.extend_from_slice(&(layout.head_size() as u32).to_le_bytes());
        if layout.format() > 1 {
            immutable.extend_from_slice(&layout.cluster_size().to_le_bytes());
        }
        let key = FileKey::new(suite, header.file, &data_key(&case["data_key"]));
        assert_eq!(key.commitment(&immutable), header.commitment);
    }
}

#[test]
fn heads() {
    let layout = Layout::new(4096, 4096).unwrap();
    for case in list(&vectors!("header")["heads"]) {
        let head = padded(&case["slots"], 4096);
        let found = Header::newest(&head, layout, sha256);
        let name = text(&case["name"]);
        match text(&case["result"]) {
            "none" => assert_eq!(found, Ok(None), "{name}"),
            "bad" => assert_eq!(found, Err(FormatError::BadHeader), "{name}"),
            "too new" => assert_eq!(found, Err(FormatError::TooNew { needs: 3 }), "{name}"),
            _ => {
                let (slot, header) = found.unwrap().unwrap();
                assert_eq!(slot as u64, number(&case["slot"]), "{name}");
                assert_eq!(header.sequence, number(&case["sequence"]), "{name}");
            }
        }
    }
}

#[test]
fn blocks() {
    for case in list(&vectors!("block")) {
        let layout = Layout::new(4096, 4096).unwrap();
        let (index, len) = (number(&case["index"]), number(&case["length"]) as usize);
        let (group, place) = layout.group_of(index);
        assert_eq!(group, number(&case["group"]));
        assert_eq!(place as u64, number(&case["place"]));
        let entry = Entry::decode(&array(&case["entry"])).unwrap();
        assert_eq!(entry.len as usize, len);
        let seal = Seal {
            nonce: array(&case["nonce"]),
            tag: array(&case["tag"]),
        };
        assert_eq!((entry.nonce, entry.tag), (seal.nonce, seal.tag));
        let file = FileId(array(&case["file_id"]));
        let key = FileKey::new(suite(&case["suite"]), file, &data_key(&case["data_key"]));
        let sealed = padded(&case["ciphertext"], len);
        let mut data = sealed.clone();
        key.group_cipher(group)
            .open(index, &seal, &mut data)
            .unwrap();
        assert_eq!(sha256(&data), array::<32>(&case["plaintext_sha256"]));
        for (group, index) in [(group + 1, index), (group, index + 1)] {
            let mut data = sealed.clone();
            let cipher = key.group_cipher(group);
            assert!(cipher.open(index, &seal, &mut data).is_err());
        }
    }
}

#[test]
fn metadata_pages() {
    for case in list(&vectors!("meta")) {
        let group = number(&case["group"]);
        let bytes = base64(&case["page"]);
        let read = MetaPage::from_bytes(group, &bytes);
        let mut made = MetaPage::empty(group);
        made.set_epoch(number(&case["epoch"]) as u32);
        assert_eq!(read.epoch(), made.epoch());
        let mut places = HashSet::new();
        for listed in list(&case["entries"]) {
            let place = number(&listed["place"]) as usize;
            let entry = Entry {
                nonce: array(&listed["nonce"]),
                tag: array(&listed["tag"]),
                len: number(&listed["length"]) as u32,
            };
            assert_eq!(read.get(place), Some(entry));
            made.set(place, Some(entry));
            places.insert(place);
        }
        assert!(made.as_bytes() == bytes);
        let mut holes = (0..read.entries()).filter(|place| !places.contains(place));
        assert!(holes.all(|place| read.get(place).is_none()));
    }
}

#[test]
fn journals() {
    for case in list(&vectors!("journal")["pages"]) {
        let unclean = list(&case["unclean"]).iter().map(|e| number(e) as u32);
        let page = JournalPage {
            volume: VolumeId(array(&case["volume_id"])),
            generation: number(&case["generation"]),
            epoch: number(&case["epoch"]) as u32,
            root_ino: number(&case["root_inode"]),
            unclean: unclean.collect(),
        };
        let bytes = base64(&case["page"]);
        assert!(page.encode(sha256) == bytes);
        assert_eq!(JournalPage::decode(&bytes, sha256), Ok(Some(page)));
    }
    for case in list(&vectors!("journal")["records"]) {
        let kind = match text(&case["kind"]) {
            "block" => RecordKind::Block(Entry {
                nonce: array(&case["nonce"]),
                tag: array(&case["tag"]),
                len: number(&case["length"]) as u32,
            }),
            _ => RecordKind::Revoke,
        };
        let record = Record {
            generation: number(&case["generation"]),
            sequence: number(&case["sequence"]),
            ino: number(&case["inode"]),
            file: FileId(array(&case["file_id"])),
            first: number(&case["first"]),
            last: number(&case["last"]),
            kind,
        };
        let (payload, bytes) = (hex(&case["payload"]), hex(&case["record"]));
        let mut made = Vec::new();
        record.encode(&payload, &mut made);
        assert_eq!(made, bytes);
        let read = Record::decode(&bytes, record.generation);
        assert_eq!(read, Some((record, &payload[..], bytes.len())));
        assert_eq!(Record::decode(&bytes, record.generation - 2), None);
    }
}

#[test]
fn names() {
    let vectors = vectors!("names");
    let volume = array(&vectors["volume_id"]);
    let keys = VolumeKeys::new(&volume, &data_key(&vectors["volume_key"]));
    let cipher = NameCipher::new(keys);
    for case in list(&vectors["names"]) {
        let (dir, name) = (DirId(array(&case["directory_id"])), hex(&case["name"]));
        let stored = text(&case["stored"]);
        assert_eq!(cipher.seal_name(&dir, &name), stored);
        assert_eq!(cipher.open_name(&dir, stored.as_bytes()), Some(name));
        assert_eq!(stored.len() as u64, number(&case["stored_length"]));
        assert_eq!(NameCipher::digest(stored), text(&case["digest"]));
    }
    for case in list(&vectors["targets"]) {
        let stored = text(&case["stored"]);
        let target = cipher.open_target(stored.as_bytes()).unwrap();
        assert_eq!(sha256(&target), array::<32>(&case["target_sha256"]));
        assert_eq!(stored.len() as u64, number(&case["stored_length"]));
        let len = NameCipher::target_len(stored.len() as u64);
        assert_eq!(len, number(&case["target_length"]));
    }
    for case in list(&vectors["xattrs"]) {
        let name = text(&case["name"]);
        let plain = name.strip_prefix("user.").unwrap();
        let stored_name = format!("user.kmsfs.{}", cipher.seal_xattr_name(plain.as_bytes()));
        assert_eq!(stored_name, text(&case["stored_name"]));
        assert!(stored_name.len() <= 255);
        let value = cipher.open_xattr(name.as_bytes(), &hex(&case["stored_value"]));
        assert_eq!(value.unwrap(), hex(&case["value"]));
    }
}

#[test]
fn configs() {
    for case in list(&vectors!("config")) {
        let json = case["config"].to_string();
        let (config, volume) = VolumeConfig::parse(json.as_bytes()).unwrap();
        let keys = VolumeKeys::new(&volume.id.0, &data_key(&case["volume_key"]));
        assert_eq!(
            keys.commitment(&volume.committed_fields()),
            volume.commitment
        );
        assert_eq!(volume.recipients, recipients(&case["recipients"]));
        assert_eq!(volume.layout, layout(&case["config"]));
        let written: Value = serde_json::from_slice(&config.to_json()).unwrap();
        assert_eq!(written, case["config"]);
    }
}

/// A keystore that another program wrote unwraps data keys.
#[test]
fn keystores() {
    let vectors = vectors!("keystore");
    let context = KeyContext {
        volume: VolumeId(array(&vectors["volume_id"])),
        file: FileId(array(&vectors["file_id"])),
    };
    assert_eq!(context.aad(), text(&vectors["context"]).as_bytes());
    for case in list(&vectors["keys"]) {
        let dir = tempfile::tempdir().unwrap();
        let private = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        private(dir.path(), 0o700);
        let name = text(&case["document"]["name"]);
        let put = |file: &str, bytes: &[u8]| {
            let path = dir.path().join(file);
            std::fs::write(&path, bytes).unwrap();
            private(&path, 0o600);
            path
        };
        put(
            &format!("{name}.json"),
            case["document"].to_string().as_bytes(),
        );
        let source = match case.get("passphrase") {
            Some(words) => PassphraseSource::File(put("words", text(words).as_bytes())),
            None => {
                let file = &case["document"]["protection"]["file"];
                put(text(file), &hex(&case["key_file"]));
                PassphraseSource::Unattended
            }
        };
        let uri = format!("local:{name}?keystore={}", dir.path().display());
        let KeyUri::Local(uri) = KeyUri::parse(&uri).unwrap() else {
            panic!("the vectors have local keys");
        };
        let provider = LocalProvider::open(&uri, &source).unwrap();
        for wrapped in list(&case["wrapped"]) {
            let expected = hex(&wrapped["data_key"]);
            let wrapped = WrappedKey {
                key_uri: text(&wrapped["key_uri"]).into(),
                key_version: text(&wrapped["key_version"]).into(),
                algorithm: String::new(),
                iv: Vec::new(),
                ciphertext: hex(&wrapped["ciphertext"]),
            };
            let key = provider.unwrap(&context, &wrapped).unwrap();
            assert_eq!(key.expose(), expected);
            let elsewhere = KeyContext {
                file: FileId([0; 16]),
                ..context
            };
            let error = provider.unwrap(&elsewhere, &wrapped).unwrap_err();
            assert!(matches!(error, KeyError::Rejected { .. }));
        }
    }
}

/// Unwraps every header to one key.
struct OneKey(Vec<u8>);

impl KeySource for OneKey {
    fn generate(&self) -> Result<NewKey, KeyError> {
        unreachable!("nothing is written")
    }

    fn prefetch(&self, _: Vec<(FileId, Vec<WrappedKey>)>) {}

    fn unwrap(&self, _: FileId, _: &[WrappedKey]) -> Result<Arc<DataKey>, KeyError> {
        Ok(Arc::new(DataKey::from_bytes(&self.0).unwrap()))
    }

    fn renew(&self, file: FileId, wrapped: &[WrappedKey]) -> Result<Arc<DataKey>, KeyError> {
        self.unwrap(file, wrapped)
    }

    fn is_local(&self) -> bool {
        true
    }
}

fn host_file(dir: &Path, name: &str) -> Arc<dyn BackingFile> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).open(dir.join(name));
    Arc::new(HostFile::new(file.unwrap().into()))
}

/// A mount of the volume that a config vector describes.
fn volume_context(config: usize, key: Vec<u8>, unclean: Vec<u32>) -> Arc<VolumeContext> {
    let json = vectors!("config")[config]["config"].to_string();
    let (_, volume) = VolumeConfig::parse(json.as_bytes()).unwrap();
    Arc::new(VolumeContext {
        suite: Suite::from_number(volume.suite).unwrap(),
        volume,
        keys: Box::new(OneKey(key)),
        journal: None,
        change_times: ChangeTimes::default(),
        epoch: 9,
        unclean,
        locked: Default::default(),
    })
}

/// What the blocks say, with holes between them.
fn content(size: usize, blocks: &Value) -> Vec<u8> {
    let mut plain = vec![0; size];
    for block in list(blocks) {
        let (at, data) = (number(&block[0]) as usize * 4096, text(&block[1]));
        plain[at..at + data.len()].copy_from_slice(data.as_bytes());
    }
    plain
}

fn read(context: Arc<VolumeContext>, backing: Arc<dyn BackingFile>) -> content::Result<Vec<u8>> {
    let file = EncryptedFile::open(context, 77, backing, false)?;
    let mut buffer = ReadBuffer::default();
    let range = file.read(0, file.size() as usize, &mut buffer)?;
    Ok(buffer.slice(range).to_vec())
}

struct OneFile(u64, Arc<dyn BackingFile>);

impl Finder for OneFile {
    fn by_inode(
        &mut self,
        inodes: &HashSet<u64>,
    ) -> content::Result<HashMap<u64, Arc<dyn BackingFile>>> {
        let wanted = inodes.contains(&self.0);
        let found = wanted.then(|| (self.0, Arc::clone(&self.1)));
        Ok(found.into_iter().collect())
    }

    fn every_file(
        &mut self,
        each: &mut dyn FnMut(Arc<dyn BackingFile>) -> content::Result<()>,
    ) -> content::Result<()> {
        each(Arc::clone(&self.1))
    }
}

/// A backing file and a journal that another program wrote: the file reads, and
/// after replay it reads as the journal says.
#[test]
fn whole_files() {
    whole_file(&vectors!("file"), 0);
    whole_file(&vectors!("file-2"), 3);
}

/// One of them, in the volume of the config vector of that number.
fn whole_file(vectors: &Value, config: usize) {
    let dir = tempfile::tempdir().unwrap();
    let pieces: BTreeMap<u64, Vec<u8>> = list(&vectors["pieces"])
        .iter()
        .map(|piece| (number(&piece[0]), base64(&piece[1])))
        .collect();
    let mut image = vec![0; number(&vectors["backing_size"]) as usize];
    for (at, bytes) in pieces {
        image[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
    }
    std::fs::write(dir.path().join("file"), &image).unwrap();
    let backing = host_file(dir.path(), "file");
    let size = number(&vectors["size"]) as usize;
    let key = hex(&vectors["data_key"]);

    let context = volume_context(config, key.clone(), vec![]);
    let plain = read(context, Arc::clone(&backing)).unwrap();
    assert!(plain == content(size, &vectors["blocks"]));
    let context = volume_context(config, vec![1; 32], vec![]);
    let wrong = read(context, Arc::clone(&backing)).unwrap_err();
    assert!(matches!(wrong, ContentError::WrongKey));

    let journal = &vectors["journal"];
    let journals = [0, 1].map(|i| {
        let name = format!("journal{i}");
        let page = base64(&journal["pages"][i]);
        std::fs::write(dir.path().join(&name), page).unwrap();
        host_file(dir.path(), &name)
    });
    let recovered = replay(
        &journals,
        VolumeId(array(&vectors["volume_id"])),
        volume_context(config, vec![], vec![]).layout(),
        number(&journal["root_inode"]),
        &mut OneFile(number(&journal["inode"]), Arc::clone(&backing)),
    )
    .unwrap();
    assert_eq!(u64::from(recovered.epoch), number(&journal["epoch"]));
    assert_eq!(recovered.blocks as u64, number(&journal["replayed"]));
    let unclean = list(&journal["unclean_after"]).iter();
    let unclean: Vec<u32> = unclean.map(|e| number(e) as u32).collect();
    assert_eq!(recovered.unclean, unclean);
    let context = volume_context(config, key, unclean);
    let plain = read(context, backing).unwrap();
    assert!(plain == content(size, &journal["blocks_after"]));
}
