//! One file of the catalog: YAML (or JSON, which is YAML), one object per document.
//!
//! A document that cannot be used is a [`FileProblem`] with the file, the object's name, the field
//! and the line; its neighbours in the file are read all the same.

use std::any::Any;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use multinet::types::block::AddressBlock;
use multinet::types::coordinator::SpiderCoordinator;
use multinet::types::core::{Namespace, Node, Pod, ServiceCIDR};
use multinet::types::meta::{ObjectMeta, Resource, keep_foreign};
use multinet::types::network::Network;
use multinet::types::node::NodeState;
use multinet::types::pool::{SpiderIPPool, SpiderReservedIP};
use multinet::types::subnet::SpiderSubnet;
use serde::Deserialize;

use super::check;

/// YAML's end of a document: the last line of every file that the agent writes.
pub(crate) const END: &str = "...\n";

/// An object of any kind; [`Resource`]s are recovered by their type.
pub(crate) type AnyObject = Arc<dyn Any + Send + Sync>;

/// What tells objects apart: kind, namespace (empty for cluster-scoped kinds), name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace, or empty.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// The key of an object; namespaced objects without a namespace are in `default`.
    pub fn of<R: Resource>(meta: &ObjectMeta) -> Self {
        Self::new::<R>(meta.namespace.as_deref(), &meta.name)
    }

    /// The key of an object by its names.
    pub fn new<R: Resource>(namespace: Option<&str>, name: &str) -> Self {
        let namespace = match namespace {
            _ if !R::NAMESPACED => String::new(),
            None | Some("") => "default".to_owned(),
            Some(namespace) => namespace.to_owned(),
        };
        Self { kind: R::KIND, namespace, name: name.to_owned() }
    }

    /// The file that the agent writes this object to, below the catalog's directory.
    pub fn file(&self) -> PathBuf {
        // A namespace has no dot, so that the first dot ends it.
        let file = if self.namespace.is_empty() {
            format!("{}.yaml", self.name)
        } else {
            format!("{}.{}.yaml", self.namespace, self.name)
        };
        Path::new(self.kind).join(file)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// A document of a file that can be used.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) key: Key,
    pub(crate) object: AnyObject,
    /// Where in the file it begins, from 1.
    pub(crate) line: usize,
    /// What cannot change while the object is in use.
    pub(crate) fixed: Vec<Fixed>,
}

/// A field that cannot change while its object is in use.
#[derive(Debug, Clone)]
pub(crate) struct Fixed {
    pub(crate) field: &'static str,
    pub(crate) value: String,
    pub(crate) line: usize,
}

/// A document that cannot be used, or a field of it that deserves a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProblem {
    /// The file.
    pub file: PathBuf,
    /// Line in the file, from 1; 0 where none is known.
    pub line: usize,
    /// `Network blue`, or empty where the document does not say.
    pub object: String,
    /// Path of the field, `spec.vni`; empty where no field is to blame.
    pub field: String,
    /// What is wrong, and what is allowed.
    pub message: String,
    /// False: the object is used in spite of it.
    pub refused: bool,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, ": {part}")?;
            }
        }
        write!(f, ": {}", self.message)
    }
}

/// What a file holds.
#[derive(Debug, Default)]
pub(crate) struct FileContent {
    /// Identifies these bytes; serves as the resource version of the objects in it.
    pub(crate) version: String,
    pub(crate) documents: Vec<Document>,
    pub(crate) problems: Vec<FileProblem>,
    /// Documents in the file, usable or not.
    pub(crate) count: usize,
}

impl FileContent {
    /// Is there a document that is not in force because of a problem?
    pub(crate) fn is_bad(&self) -> bool {
        self.problems.iter().any(|problem| problem.refused)
    }
}

/// Reads the documents of a file's text.
pub(crate) fn parse(file: &Path, text: &str, version: String) -> FileContent {
    let mut content = FileContent { version, ..Default::default() };
    let whole_problem = |message: String| FileProblem {
        file: file.to_owned(),
        line: 0,
        object: String::new(),
        field: String::new(),
        message,
        refused: true,
    };
    if file.starts_with(AddressBlock::KIND) {
        // The first half of a block is a block with free addresses: it must not be believed.
        let Some(block) = text.strip_suffix(END) else {
            content.problems.push(whole_problem(format!(
                "the file is cut off: its last line is not \"{}\"; restore it from a copy",
                END.trim()
            )));
            return content;
        };
        if let Some(document) = block_of_agents(block, &content.version) {
            return FileContent { documents: vec![document], count: 1, ..content };
        }
    }
    let starts = document_lines(text);
    let heads = serde_yaml_ng::Deserializer::from_str(text);
    let bodies = serde_yaml_ng::Deserializer::from_str(text);
    // A syntax error ends the text for good, and the reader then repeats it for ever.
    for (index, (head, body)) in heads.zip(bodies).take(starts.len()).enumerate() {
        let place = Place {
            file,
            start: starts.get(index).copied().unwrap_or(1),
            version: &content.version,
            text,
        };
        match place.read(head, body) {
            Ok(None) => {}
            Ok(Some((document, warnings))) => {
                content.count += 1;
                content.problems.extend(warnings);
                content.documents.push(document);
            }
            Err(problems) => {
                content.count += 1;
                let new = problems.into_iter().filter(|p| !content.problems.contains(p));
                let new: Vec<_> = new.collect();
                content.problems.extend(new);
            }
        }
    }
    if content.count == 0 {
        let message = "the file is empty; delete it to remove what it held";
        content.problems.push(whole_problem(message.into()));
    }
    content
}

/// A block as agents write it: JSON, which takes a small part of the time that YAML takes. Whatever
/// deserves a word is left to the reader of YAML, who knows the lines.
fn block_of_agents(text: &str, version: &str) -> Option<Document> {
    let mut fields = serde_json::Deserializer::from_str(text);
    let mut unknown = false;
    let mut block: AddressBlock =
        serde_ignored::deserialize(&mut fields, |_| unknown = true).ok()?;
    fields.end().ok()?;
    let kind = (block.api_version.as_str(), block.kind.as_str());
    let remarkable = unknown
        || kind != (AddressBlock::API_VERSION, AddressBlock::KIND)
        || !check::Checked::check(&block).is_empty();
    if remarkable {
        return None;
    }
    block.metadata.resource_version = Some(version.to_owned());
    let key = Key::of::<AddressBlock>(&block.metadata);
    Some(Document { key, line: 1, fixed: Vec::new(), object: Arc::new(block) })
}

/// The line on which each document's text starts, from 1.
fn document_lines(text: &str) -> Vec<usize> {
    let mut lines = vec![1];
    let mut seen_content = false;
    for (index, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") {
            if seen_content {
                lines.push(index + 2);
            } else {
                lines[0] = index + 2;
            }
            seen_content = true;
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            seen_content = true;
        }
    }
    lines
}

/// The part of every object that says what it is.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    api_version: String,
    kind: String,
    metadata: HeadMeta,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct HeadMeta {
    name: String,
}

type Read = Result<Option<(Document, Vec<FileProblem>)>, Vec<FileProblem>>;

struct Place<'a> {
    file: &'a Path,
    start: usize,
    version: &'a str,
    text: &'a str,
}

impl Place<'_> {
    fn read(
        &self,
        head: serde_yaml_ng::Deserializer<'_>,
        body: serde_yaml_ng::Deserializer<'_>,
    ) -> Read {
        let head: Option<Head> = serde_path_to_error::deserialize(head)
            .map_err(|e| vec![self.decode_problem("", &e)])?;
        let Some(head) = head else { return Ok(None) }; // an empty document, such as a trailing ---
        let name = format!("{} {}", head.kind, head.metadata.name);
        let name = name.trim();
        let Some(kind) = KINDS.iter().find(|k| k.kind == head.kind) else {
            let known: Vec<_> = KINDS.iter().map(|k| k.kind).collect();
            return Err(vec![self.problem(
                name,
                "kind",
                format!("\"{}\" is not one of {}", head.kind, known.join(", ")),
            )]);
        };
        if kind.api_version != head.api_version {
            return Err(vec![self.problem(
                name,
                "apiVersion",
                format!("\"{}\" must be {}", head.api_version, kind.api_version),
            )]);
        }
        (kind.read)(self, name, body).map(Some)
    }

    fn decode_problem(
        &self,
        object: &str,
        error: &serde_path_to_error::Error<serde_yaml_ng::Error>,
    ) -> FileProblem {
        let path = error.path().to_string();
        let inner = error.inner();
        let field = if path == "." { "" } else { &path };
        let mut problem = self.problem(object, field, said_once(inner, field));
        if let Some(location) = inner.location() {
            problem.line = location.line();
        }
        problem
    }

    fn problem(&self, object: &str, field: &str, message: String) -> FileProblem {
        FileProblem {
            file: self.file.to_owned(),
            line: self.line_of(field),
            object: object.to_owned(),
            field: field.to_owned(),
            message,
            refused: true,
        }
    }

    fn ignored<R: Resource>(&self, object: &str, field: &str) -> FileProblem {
        let message = format!("is no field of a {} and is ignored: is it spelt right?", R::KIND);
        FileProblem { refused: false, ..self.problem(object, field, message) }
    }

    /// The line of a field in block style: each key of the path is looked for below the line of the
    /// key before it, whatever its place in a list. Where the text is written otherwise, the document's
    /// first line.
    fn line_of(&self, field: &str) -> usize {
        let mut line = self.start;
        let lines: Vec<&str> = self.text.lines().collect();
        let is_place = |key: &str| key.bytes().all(|byte| byte.is_ascii_digit());
        for key in field.split('.').filter(|key| !is_place(key)) {
            let key = key.split('[').next().unwrap_or(key);
            let below = lines.iter().enumerate().skip(line.saturating_sub(1));
            let found = below.take_while(|(at, text)| *at + 1 == line || !text.starts_with("---"));
            let mut found = found.filter(|(_, text)| {
                let text = text.trim_start_matches([' ', '-']);
                text.strip_prefix(key).is_some_and(|rest| rest.starts_with(':'))
            });
            let Some((at, _)) = found.next() else { break };
            line = at + 1;
        }
        line
    }
}

/// The decoder's sentence without the field and the place, which the problem says itself.
fn said_once(error: &serde_yaml_ng::Error, field: &str) -> String {
    let text = error.to_string();
    let named = text.strip_prefix(field).and_then(|rest| rest.strip_prefix(": "));
    let text = named.unwrap_or(&text);
    let place = error.location().map(|at| format!(" at line {} column {}", at.line(), at.column()));
    place.and_then(|place| text.strip_suffix(&place)).unwrap_or(text).to_owned()
}

/// A document and what deserves a word about it, or what is wrong with it.
type ReadDocument = Result<(Document, Vec<FileProblem>), Vec<FileProblem>>;

struct KindEntry {
    kind: &'static str,
    api_version: &'static str,
    read: fn(&Place<'_>, &str, serde_yaml_ng::Deserializer<'_>) -> ReadDocument,
}

const fn entry<R: Resource + check::Checked>() -> KindEntry {
    KindEntry { kind: R::KIND, api_version: R::API_VERSION, read: read_as::<R> }
}

static KINDS: [KindEntry; 11] = [
    entry::<Network>(),
    entry::<SpiderIPPool>(),
    entry::<SpiderSubnet>(),
    entry::<SpiderReservedIP>(),
    entry::<SpiderCoordinator>(),
    entry::<AddressBlock>(),
    entry::<NodeState>(),
    entry::<Pod>(),
    entry::<Namespace>(),
    entry::<Node>(),
    entry::<ServiceCIDR>(),
];

fn read_as<R: Resource + check::Checked>(
    place: &Place<'_>,
    name: &str,
    body: serde_yaml_ng::Deserializer<'_>,
) -> ReadDocument {
    let mut unknown = Vec::new();
    // An optional part is written as a question mark.
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(path.to_string().replace(".?", ""));
    let body = serde_ignored::Deserializer::new(body, &mut note);
    let mut object: R =
        serde_path_to_error::deserialize(body).map_err(|e| vec![place.decode_problem(name, &e)])?;
    if object.meta().name.is_empty() {
        return Err(vec![place.problem(name, "metadata.name", "is missing".into())]);
    }
    object.meta_mut().resource_version = Some(place.version.to_owned());
    // Files that agents write hold one object each; nobody rewrites the others.
    if !unknown.is_empty()
        && place.file.starts_with(R::KIND)
        && let Ok(raw) = serde_yaml_ng::from_str(place.text)
        && let Err(e) = keep_foreign(&mut object, &raw)
    {
        return Err(vec![place.problem(name, "", e.to_string())]);
    }
    let found = object.check();
    let wrong = found.iter().map(|p| FileProblem {
        refused: p.is_error(),
        ..place.problem(name, &p.field, message_of(p))
    });
    // What is in the status, or in metadata of Kubernetes, is nobody's mistake.
    let misspelt = unknown.iter().filter(|path| {
        R::ALL_FIELDS_KNOWN && !path.starts_with("metadata.") && !path.starts_with("status")
    });
    let problems: Vec<_> =
        wrong.chain(misspelt.map(|path| place.ignored::<R>(name, path))).collect();
    if problems.iter().any(|p| p.refused) {
        return Err(problems);
    }
    let key = Key::of::<R>(object.meta());
    let fixed = object.fixed_in_use().into_iter();
    let fixed = fixed.map(|(field, value)| Fixed { field, value, line: place.line_of(field) });
    let fixed = fixed.collect();
    Ok((Document { key, line: place.start, fixed, object: Arc::new(object) }, problems))
}

fn message_of(problem: &multinet::rules::Problem) -> String {
    if problem.value.is_empty() {
        problem.message.clone()
    } else {
        format!("\"{}\": {}", problem.value, problem.message)
    }
}
