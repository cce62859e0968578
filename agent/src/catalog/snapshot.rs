//! What of the catalog is in force.
//!
//! A snapshot is immutable; the next one is made from it and from the files as they are now. What a
//! file held stays in force while the file is bad, and while somebody is still writing it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use multinet::types::block::AddressBlock;
use multinet::types::meta::Resource;

use super::directory::{Directory, Stamp};
use super::file::{AnyObject, Document, FileProblem, Fixed, Key};

/// A file of people's counts as written completely when nobody has written to it for so long.
const SETTLE: Duration = Duration::from_millis(60);

/// Objects by kind. Copies share the kinds that did not change.
pub(crate) type ByKind = BTreeMap<&'static str, Arc<ByKey>>;

/// Objects of one kind. A copy of thousands takes neither texts nor objects along.
pub(crate) type ByKey = BTreeMap<Arc<Key>, AnyObject>;

/// The catalog as it is in force.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    objects: ByKind,
    files: HashMap<PathBuf, Held>,
    problems: Vec<FileProblem>,
    /// Some file was left out because it is still being written.
    unsettled: bool,
}

/// What is in force of one file.
#[derive(Debug, Clone)]
struct Held {
    stamp: Option<Stamp>,
    documents: Vec<Document>,
    problems: Vec<FileProblem>,
}

impl Snapshot {
    /// The objects of the API.
    pub(crate) fn of(objects: ByKind) -> Self {
        Self { objects, ..Self::default() }
    }

    /// Reads the files again, keeping what must stay in force.
    pub(crate) fn next(&self, directory: &Directory) -> io::Result<Self> {
        let mut next = Self::default();
        for path in directory.files()? {
            let before = self.files.get(&path);
            if let Some(held) = next.read_file(directory, &path, before) {
                next.files.insert(path, held);
            }
        }
        next.keep_what_is_in_use(self);
        next.index(self);
        Ok(next)
    }

    /// What makes a Network's realm cannot change under its pods: the Network that is in force stays
    /// until nobody holds an address of it.
    fn keep_what_is_in_use(&mut self, before: &Self) {
        let blocks = self.documents().filter_map(|d| d.object.downcast_ref::<AddressBlock>());
        let used = blocks.filter(|block| !block.is_idle());
        let in_use: BTreeSet<String> = used.map(|block| block.spec.network.clone()).collect();
        let fixed = before.documents().filter(|d| !d.fixed.is_empty());
        let old: HashMap<&Key, &Document> = fixed.map(|d| (&d.key, d)).collect();
        for (path, held) in &mut self.files {
            let mut refused = Vec::new();
            for new in &mut held.documents {
                let Some(old) = old.get(&new.key).filter(|_| in_use.contains(&new.key.name)) else {
                    continue;
                };
                let changed = changed_fields(path, new, old);
                if !changed.is_empty() {
                    refused.extend(changed);
                    *new = (*old).clone();
                }
            }
            if !refused.is_empty() {
                held.problems.extend(refused);
                // To be read again at the next look: it counts when the pods are gone.
                held.stamp = None;
            }
        }
    }

    fn read_file(
        &mut self,
        directory: &Directory,
        path: &Path,
        before: Option<&Held>,
    ) -> Option<Held> {
        let stamp = match Directory::stamp(path) {
            Ok(stamp) => stamp?,
            Err(e) => return Some(unreadable(path, before, &e)),
        };
        if let Some(before) = before.filter(|b| b.stamp == Some(stamp)) {
            return Some(before.clone());
        }
        if is_peoples(path) && stamp.age().is_some_and(|age| age < SETTLE) {
            self.unsettled = true;
            return before.cloned();
        }
        let content = match directory.read(path) {
            Ok(content) => content?,
            Err(e) => return Some(unreadable(path, before, &e)),
        };
        let mut documents = content.documents.clone();
        if content.is_bad() {
            // Which object a bad document was meant to be is not known for sure: all that the file
            // held and that it does not hold now stays.
            let old = before.map(|b| b.documents.as_slice()).unwrap_or_default();
            let kept: Vec<_> =
                old.iter().filter(|o| documents.iter().all(|d| d.key != o.key)).cloned().collect();
            documents.extend(kept);
        }
        let problems = content.problems.iter().cloned();
        let problems = problems.map(|p| FileProblem { file: path.to_owned(), ..p }).collect();
        Some(Held { stamp: Some(stamp), documents, problems })
    }

    /// Fills the index. Of an object that two files define, the one in force stays.
    fn index(&mut self, before: &Self) {
        let mut holders: BTreeMap<Key, (PathBuf, Document)> = BTreeMap::new();
        let mut paths: Vec<_> = self.files.keys().cloned().collect();
        paths.sort();
        for path in paths {
            let held = &self.files[&path];
            self.problems.extend(held.problems.iter().cloned());
            for document in &held.documents {
                let key = &document.key;
                let second = (path.clone(), document.clone());
                let Some(first) = holders.get(key) else {
                    holders.insert(key.clone(), second);
                    continue;
                };
                let keeps_second = before.holds(&path, key) && !before.holds(&first.0, key);
                if keeps_second {
                    self.problems.push(duplicate(first, &path));
                    holders.insert(key.clone(), second);
                } else {
                    self.problems.push(duplicate(&second, &first.0));
                }
            }
        }
        let mut by_kind: BTreeMap<&'static str, ByKey> = BTreeMap::new();
        for (key, (_, document)) in holders {
            by_kind.entry(key.kind).or_default().insert(key.into(), document.object);
        }
        self.objects = by_kind.into_iter().map(|(kind, objects)| (kind, objects.into())).collect();
    }

    fn documents(&self) -> impl Iterator<Item = &Document> {
        self.files.values().flat_map(|held| &held.documents)
    }

    fn holds(&self, path: &Path, key: &Key) -> bool {
        self.files.get(path).is_some_and(|held| held.documents.iter().any(|d| d.key == *key))
    }

    /// The object in force.
    pub fn get<R: Resource>(&self, namespace: Option<&str>, name: &str) -> Option<Arc<R>> {
        let object = self.objects.get(R::KIND)?.get(&Key::new::<R>(namespace, name))?;
        object.clone().downcast::<R>().ok()
    }

    /// All objects of a kind, by namespace and name.
    pub fn list<R: Resource>(&self) -> impl Iterator<Item = Arc<R>> {
        let of_kind = self.objects.get(R::KIND).into_iter().flat_map(|objects| objects.values());
        of_kind.filter_map(|object| object.clone().downcast::<R>().ok())
    }

    /// How many there are of a kind.
    pub fn count<R: Resource>(&self) -> usize {
        self.objects.get(R::KIND).map_or(0, |objects| objects.len())
    }

    /// Only these kinds, so that nothing else is kept in memory with them.
    pub(crate) fn only(&self, kinds: &[&'static str]) -> Self {
        let mut objects = self.objects.clone();
        objects.retain(|kind, _| kinds.contains(kind));
        Self::of(objects)
    }

    /// Do both hold the same objects of a kind?
    pub(crate) fn same_of_kind<R: Resource>(&self, other: &Self) -> bool {
        same_objects(self.objects.get(R::KIND), other.objects.get(R::KIND))
    }

    /// What is wrong with the files.
    pub fn problems(&self) -> &[FileProblem] {
        &self.problems
    }

    /// Is some file still being written, so that another look is due?
    pub(crate) fn unsettled(&self) -> bool {
        self.unsettled
    }

    /// Do both hold the same objects, byte for byte?
    pub(crate) fn same_objects(&self, other: &Self) -> bool {
        let mut kinds = self.objects.keys().chain(other.objects.keys());
        kinds.all(|kind| same_objects(self.objects.get(kind), other.objects.get(kind)))
    }
}

/// The same objects of one kind?
fn same_objects(one: Option<&Arc<ByKey>>, other: Option<&Arc<ByKey>>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return one.is_none() && other.is_none() };
    let same = |((key, object), (other_key, other)): ((_, &AnyObject), (_, &AnyObject))| {
        let (key, other_key): (&Arc<Key>, &Arc<Key>) = (key, other_key);
        key == other_key && Arc::ptr_eq(object, other)
    };
    Arc::ptr_eq(one, other) || (one.len() == other.len() && one.iter().zip(other.iter()).all(same))
}

/// A problem for each field that differs and may not.
fn changed_fields(path: &Path, new: &Document, old: &Document) -> Vec<FileProblem> {
    let pairs = new.fixed.iter().zip(&old.fixed);
    let differing = pairs.filter(|(new, old)| new.value != old.value);
    let text = |value: &str| if value.is_empty() { "nothing".into() } else { value.to_owned() };
    let problem = |(new_field, old_field): (&Fixed, &Fixed)| FileProblem {
        file: path.to_owned(),
        line: new_field.line,
        object: new.key.to_string(),
        field: new_field.field.to_owned(),
        message: format!(
            "cannot become {} while pods hold addresses of the Network; {} stays in force. Delete \
             the pods first, or make a new Network",
            text(&new_field.value),
            text(&old_field.value),
        ),
        refused: true,
    };
    differing.map(problem).collect()
}

fn is_peoples(path: &Path) -> bool {
    // Agents write these by rename, so that they are complete whenever they can be seen.
    let kind = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    !matches!(kind, Some("AddressBlock" | "NodeState"))
}

fn unreadable(path: &Path, before: Option<&Held>, error: &io::Error) -> Held {
    let problem = FileProblem {
        file: path.to_owned(),
        line: 0,
        object: String::new(),
        field: String::new(),
        message: format!("cannot be read: {error}"),
        refused: true,
    };
    Held {
        stamp: None,
        documents: before.map(|b| b.documents.clone()).unwrap_or_default(),
        problems: vec![problem],
    }
}

fn duplicate((loser, document): &(PathBuf, Document), winner: &Path) -> FileProblem {
    FileProblem {
        file: loser.to_owned(),
        line: document.line,
        object: document.key.to_string(),
        field: String::new(),
        message: format!("is defined in {} already; remove one of the two", winner.display()),
        refused: true,
    }
}
