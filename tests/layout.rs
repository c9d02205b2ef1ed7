//! The order of the folders of `src`. A folder imports only from those before it, and no files import in a circle.
//! `src/README.md` describes the folders.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::{
    ItemMod, ItemUse, UseTree, Visibility,
    visit::{Visit, visit_item_mod, visit_path},
};

/// The folders in their order: each may import from those before it. A file at the root of `src` counts as a folder.
const LIBRARY: [&str; 20] = [
    "error",
    "backoff",
    "model",
    "decode",
    "metrics",
    "postgres",
    "client",
    "sql",
    "store",
    "event_list",
    "relay",
    "config",
    "read",
    "history",
    "reader",
    "writer",
    "follow",
    "follower",
    "cache",
    "lib",
];
const BINARY: [&str; 4] = ["server", "demo", "cli", "main"];

/// The path of a module from the crate's root, such as `read::rows`. The root itself is `lib` or `main`.
type Module = String;

/// The imports and re-exports of a file.
#[derive(Default)]
struct Imports {
    paths: BTreeSet<Vec<String>>,
    /// The re-exports: each name with the path that it stands for.
    exports: BTreeMap<String, Vec<String>>,
}

/// Collects the paths that a file uses, as paths from the crate's root.
struct Finder<'a> {
    module: Vec<String>,
    children: &'a BTreeSet<String>,
    found: Imports,
}

impl Finder<'_> {
    /// Turns a path in the file into one from the root. `None` if it leads to another crate.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([&self.module, rest].concat()),
            "super" => {
                let parent = &self.module[..self.module.len().checked_sub(1)?];
                let finder = Finder {
                    module: parent.to_vec(),
                    children: self.children,
                    found: Imports::default(),
                };
                match rest.first().map(String::as_str) {
                    Some("super") => finder.absolute(rest),
                    _ => Some([parent, rest].concat()),
                }
            }
            name if self.children.contains(name) => Some([&self.module[..], path].concat()),
            _ => None,
        }
    }

    /// Adds every path that a `use` imports, with the name under which it imports it.
    fn leaves(tree: &UseTree, before: &[String], all: &mut Vec<(Vec<String>, String)>) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => Finder::leaves(&path.tree, &with(&path.ident), all),
            UseTree::Name(name) if name.ident == "self" => {
                all.push((before.to_vec(), before.last().cloned().unwrap_or_default()));
            }
            UseTree::Name(name) => all.push((with(&name.ident), name.ident.to_string())),
            UseTree::Rename(name) => all.push((with(&name.ident), name.rename.to_string())),
            UseTree::Glob(_) => all.push((before.to_vec(), "*".to_owned())),
            UseTree::Group(group) => {
                for tree in &group.items {
                    Finder::leaves(tree, before, all);
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let mut leaves = Vec::new();
        Finder::leaves(&item.tree, &[], &mut leaves);
        for (path, name) in leaves {
            let Some(path) = self.absolute(&path) else {
                continue;
            };
            match item.vis {
                Visibility::Inherited => {
                    self.found.paths.insert(path);
                }
                _ => {
                    self.found.exports.insert(name, path);
                }
            }
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if names.len() > 1
            && let Some(path) = self.absolute(&names)
        {
            self.found.paths.insert(path);
        }
        visit_path(self, path);
    }

    /// Unit tests may import from any folder.
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.ident != "tests" {
            visit_item_mod(self, item);
        }
    }
}

/// The files of one crate by module, with their imports.
struct Crate {
    root: &'static str,
    files: BTreeMap<Module, Imports>,
}

impl Crate {
    /// Parses sources. Their names are paths below `src` without `.rs`.
    fn of(root: &'static str, sources: &BTreeMap<String, String>) -> Crate {
        let path_of = |file: &str| -> Vec<String> {
            let file = file.strip_suffix("/mod").unwrap_or(file);
            match file == root {
                true => Vec::new(),
                false => file.split('/').map(str::to_owned).collect(),
            }
        };
        let modules: BTreeSet<Vec<String>> = sources.keys().map(|file| path_of(file)).collect();
        let files = sources.iter().map(|(file, text)| {
            let module = path_of(file);
            let children = modules
                .iter()
                .filter(|other| other.len() == module.len() + 1 && other.starts_with(&module))
                .filter_map(|other| other.last().cloned())
                .collect();
            let mut finder = Finder {
                module: module.clone(),
                children: &children,
                found: Imports::default(),
            };
            finder.visit_file(
                &syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}")),
            );
            let name = match module.is_empty() {
                true => root.to_owned(),
                false => module.join("::"),
            };
            (name, finder.found)
        });
        let files = files.collect();
        Crate { root, files }
    }

    /// The file that defines a path. Follows re-exports.
    fn file_of(&self, path: &[String]) -> Option<Module> {
        // The longest prefix that names a file is the file. The rest of the path is an item within it.
        for length in (0..=path.len()).rev() {
            let module = match length {
                0 => self.root.to_owned(),
                length => path[..length].join("::"),
            };
            let Some(file) = self.files.get(&module) else {
                continue;
            };
            let exported = path.get(length).and_then(|name| file.exports.get(name));
            return match exported {
                Some(from) if from.as_slice() != path => self.file_of(from),
                _ => Some(module),
            };
        }
        None
    }

    /// For each file the other files of this crate that it imports from.
    fn imports(&self) -> BTreeMap<&str, BTreeSet<Module>> {
        let of = |(module, imports): (&'_ Module, &Imports)| -> BTreeSet<Module> {
            let files = imports.paths.iter().filter_map(|path| self.file_of(path));
            files.filter(|file| file != module).collect()
        };
        let all = self.files.iter();
        all.map(|entry| (entry.0.as_str(), of(entry))).collect()
    }

    /// Imports from a folder that comes later in the order, or that the order does not name.
    fn wrong_imports(&self, order: &[&str]) -> Vec<String> {
        let place = |module: &str| {
            let folder = module.split("::").next().unwrap_or(module);
            order.iter().position(|known| *known == folder)
        };
        let mut wrong = Vec::new();
        for (module, imports) in self.imports() {
            for import in imports {
                let (from, to) = (place(module), place(&import));
                if from.is_none() || to.is_none() || to > from {
                    wrong.push(format!("{module} imports {import}"));
                }
            }
        }
        wrong
    }

    /// Files that import each other, directly or through others.
    fn circles(&self) -> Vec<String> {
        let imports = self.imports();
        let reach = |start: &str| {
            let mut seen = BTreeSet::new();
            let mut next = vec![start.to_owned()];
            while let Some(module) = next.pop() {
                for import in imports.get(module.as_str()).into_iter().flatten() {
                    if seen.insert(import.clone()) {
                        next.push(import.clone());
                    }
                }
            }
            seen
        };
        let reached: BTreeMap<&str, BTreeSet<String>> = imports
            .keys()
            .map(|module| (*module, reach(module)))
            .collect();
        // A file is in a circle if a file that it imports leads back to it.
        let mut circles = Vec::new();
        for (module, imports) in &imports {
            let back = imports
                .iter()
                .filter(|import| reached[import.as_str()].contains(*module));
            circles.extend(back.map(|import| format!("{module} and {import} import each other")));
        }
        circles
    }
}

/// All sources of the library, or of the binary if `binary` is true.
fn sources(binary: bool) -> BTreeMap<String, String> {
    fn walk(folder: &Path, root: &Path, all: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, root, all);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().with_extension("");
                let text = fs::read_to_string(&path).expect("a source");
                all.insert(name.to_str().unwrap().to_owned(), text);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = BTreeMap::new();
    walk(&root, &root, &mut all);
    all.retain(|file, _| {
        let folder = file.split('/').next().unwrap_or(file);
        !file.ends_with("tests") && BINARY.contains(&folder) == binary
    });
    all
}

/// Each folder of the library imports only from those before it.
#[test]
fn folders_of_the_library_import_in_order() {
    let library = Crate::of("lib", &sources(false));
    assert_eq!(library.wrong_imports(&LIBRARY), [""; 0]);
}

/// A file of the library can be read without the files that import it.
#[test]
fn no_files_of_the_library_import_in_a_circle() {
    let library = Crate::of("lib", &sources(false));
    assert_eq!(library.circles(), [""; 0]);
}

/// Each folder of the binary imports only from those before it.
#[test]
fn folders_of_the_binary_import_in_order() {
    let binary = Crate::of("main", &sources(true));
    assert_eq!(binary.wrong_imports(&BINARY), [""; 0]);
}

/// A file of the binary can be read without the files that import it.
#[test]
fn no_files_of_the_binary_import_in_a_circle() {
    let binary = Crate::of("main", &sources(true));
    assert_eq!(binary.circles(), [""; 0]);
}

/// The tests above can fail: they find a wrong import and a circle that this test adds to the sources.
#[test]
fn a_wrong_import_and_a_circle_are_found() {
    let plant = |file: &str, line: &str| {
        let mut planted = sources(false);
        let text = planted.get_mut(file).expect("a file");
        text.push_str(line);
        Crate::of("lib", &planted)
    };
    let wrong = plant("model/time", "\nuse crate::read::rows::Reader;\n");
    assert_eq!(
        wrong.wrong_imports(&LIBRARY),
        ["model::time imports read::rows"]
    );
    assert!(!wrong.circles().is_empty());
    // A path in the code counts too, not only a `use`.
    let wrong = plant("decode/fast", "\nfn f() { crate::follow::warm_up; }\n");
    assert_eq!(
        wrong.wrong_imports(&LIBRARY),
        ["decode::fast imports follow"]
    );
    // The import goes through a name that another file re-exports.
    let wrong = plant("model/slab", "\nuse super::CachedEvent;\n");
    assert!(
        wrong
            .circles()
            .iter()
            .any(|circle| circle.contains("model::slab")),
        "{:?}",
        wrong.circles()
    );
}
