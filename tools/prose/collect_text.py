#!/usr/bin/env python3
"""Make the training and held-out text of models/prose from Debian 12 packages.

    collect_text.py OUT [--debs DIR] [--jobs N]

Downloads every package of packages.tsv with `apt-get download` (into DIR, kept),
extracts clean English paragraphs, removes duplicates, splits by whole documents,
and writes into OUT:

    train.txt      documents separated by a line <|endoftext|>, paragraphs by blank lines
    heldout.txt    whole documents, separated by blank lines only
    manifest.json  per package: version, licence, documents, bytes; held-out documents

Nothing is taken from anywhere but the listed packages.
"""
import argparse, gzip, hashlib, html, io, json, multiprocessing, os, re, struct
import subprocess, sys, tarfile, unicodedata, zlib

import lxml.html

HERE = os.path.dirname(os.path.abspath(__file__))
SEED = "espalier-prose-1"            # every pseudo-random choice is a hash with this
HELDOUT_PER_PACKAGE = 36_000         # bytes of held-out text from each package marked 'h'
DOC_MIN, HELD_MIN, HELD_MAX = 400, 3_000, 20_000
SEP = "<|endoftext|>"


def rank(*parts):
    return hashlib.sha256("/".join((SEED,) + parts).encode()).hexdigest()


# ---------------------------------------------------------------- paragraphs

STOP = set("""the of and to a in is that for it as be this with are on by or not you an if
from can which will at have has was but when your all we they their his he its one use used
there no more do other may any only than these i my her she so been into would what who
then were had them must should out up how each also""".split())
FOREIGN = re.compile(r"[^\x00-\u024f\u0300-\u03ff\u2010-\u203f\u20ac\u2122\u2190-\u21ff\u2200-\u22ff]")
WORD = re.compile(r"[A-Za-z']+")


def clean(text):
    text = unicodedata.normalize("NFC", text).replace("\u00b6", "").replace("\u00ad", "")
    text = re.sub(r"[\u200b-\u200f\u2060\ufeff\ue000-\uf8ff\ufffd]", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r" ([,.;:?!])(?= |$)", r"\1", text)


def is_prose(p):
    """Keeps sentences; drops headings, tables of numbers, code, menus, foreign text."""
    if not 60 <= len(p) <= 6000 or p[-1] not in '.!?:;"\')”’' or SEP in p:
        return False
    if FOREIGN.search(p) or not (p[0].isalnum() or p[0] in "\"'“‘(-*"):
        return False
    letters = sum(c.isalpha() or c == " " for c in p)
    if letters < 0.86 * len(p):
        return False
    if any(len(w) > 40 for w in p.split()):
        return False
    if sum(p.count(c) for c in "{}=<>|\\_$#@/[]") > 0.02 * len(p):
        return False
    words = [w.lower() for w in WORD.findall(p)]
    return len(words) >= 9 and sum(w in STOP for w in words) >= 0.22 * len(words)


def fingerprint(p):
    """Paragraphs that differ only in case, digits, space or punctuation are the same."""
    key = re.sub(r"\d+", "0", p.lower())
    return hashlib.blake2b(re.sub(r"[^a-z0]+", "", key).encode(), digest_size=12).digest()


# ---------------------------------------------------------------- formats

BLOCK = set("""p div li dd dt td th tr ul ol dl h1 h2 h3 h4 h5 h6 section article body html
blockquote main center br hr para title item listitem note example steps figure caption
figcaption varlistentry term simpara sect1 sect2 sect3 chapter page summary details
warning tip caution important""".split())
DROP = set("""script style nav header footer pre table form button select svg math head
noscript iframe aside screen programlisting synopsis code-block info media title
caption figcaption h1 h2 h3 h4 h5 h6 dt term guimenu legalnotice textarea literallayout
cmdsynopsis funcsynopsis informaltable variablelist-title address revhistory""".split())
DROP_CLASS = re.compile(
    r"(^|[\s_-])(nav\w*|sidebar\w*|toc\w*|footer|header|headerlink|related|breadcrumbs?|highlight\S*|"
    r"literal-block|menu\w*|versionmodified|footnotes?|copyright|legalnotice|programlisting|"
    r"doctest|sourceCode|index\w*|tocsubtree|SIntrapara|SCodeFlow|refsynopsisdiv|"
    r"admonition-title|versionset|navsettop|src|docblock-short|search\S*|lang\w*)(\s|$)", re.I)


def tree_paragraphs(root):
    out, buf = [], []

    def flush():
        text = clean("".join(buf))
        buf.clear()
        if text:
            out.append(text)

    def walk(e, depth):
        tag = e.tag if isinstance(e.tag, str) else None
        if tag:
            tag = tag.rsplit("}", 1)[-1].rsplit(":", 1)[-1].lower()
        ids = (e.get("class") or "") + " " + (e.get("id") or "") if tag else ""
        if tag in ("body", "html") or re.search("wy-|bodywrapper|qtdocheader", ids):
            ids = ""                                   # page frames, "nav" in the name or not
        if tag and tag not in DROP and depth < 200 and not (ids.strip() and DROP_CLASS.search(ids)):
            block = tag in BLOCK
            if block:
                flush()
            if e.text:
                buf.append(e.text)
            for c in e:
                walk(c, depth + 1)
            if block:
                flush()
        elif tag in DROP:
            flush()
        if e.tail:
            buf.append(e.tail)

    walk(root, 0)
    flush()
    return out


def from_html(data, name):
    m = re.search(rb"charset=[\"']?([\w-]+)", data[:2048])
    enc = m.group(1).decode() if m else "utf-8"
    try:
        text = data.decode(enc)
    except (LookupError, UnicodeDecodeError):
        text = data.decode("latin-1")
    text = re.sub(r"<\?xml[^>]*\?>", "", text, count=1)
    if not text.strip():
        return
    yield name, tree_paragraphs(lxml.html.document_fromstring(text))


def from_xml(data, name):                              # DocBook and Mallard
    text = data.decode("utf-8", "replace")
    ents = dict(re.findall(r'<!ENTITY\s+([\w.-]+)\s+"([^"<]*)"', text))
    text = re.sub(r"<!DOCTYPE[^\[>]*(\[.*?\]\s*)?>", "", text, count=1, flags=re.S)
    text = re.sub(r"<\?.*?\?>", "", text, flags=re.S)
    text = re.sub(r"&([\w.-]+);", lambda m: ents.get(m[1]) or (
        m[0] if m[1] in ("lt", "gt", "amp", "quot", "apos") else
        html.unescape(m[0]) if html.unescape(m[0]) != m[0] else m[1].capitalize()), text)
    parser = lxml.etree.XMLParser(recover=True, resolve_entities=False, huge_tree=True)
    root = lxml.etree.fromstring(text.encode(), parser)
    if root is None:
        return
    parts = root.findall(".//{*}chapter") or root.findall(".//{*}sect1") or [root]
    for i, part in enumerate(parts):
        yield f"{name}#{i}" if len(parts) > 1 else name, tree_paragraphs(part)


ROFF_CHAR = {"aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "em": "—", "en": "–",
             "bu": "", "co": "(C)", "rs": "\\", "ti": "~", "ha": "^", "ga": "`", "mu": "×", "+-": "±"}
ROFF_TEXT = {"B", "I", "BR", "BI", "IR", "IB", "RB", "RI", "SM", "SB"}
ROFF_SKIP = {"nf": "fi", "EX": "EE", "TS": "TE", "Vb": "Ve", "de": ".", "ig": ".", "SY": "YS"}


def roff_escapes(s):
    s = re.sub(r'\\".*', "", s)
    s = re.sub(r"\\f(\(..|\[[^\]]*\]|.)|\\s[-+]?\d+|\\[&%/,|^:)c]|\\h'[^']*'|\\v'[^']*'", "", s)
    s = s.replace("\\e", "\x00").replace("\\-", "-").replace("\\ ", " ").replace("\\~", " ").replace("\\0", " ")
    s = s.replace("\\'", "'").replace("\\`", "`")
    s = re.sub(r"\\\*?\((..)|\\\*?\[([^\]]*)\]", lambda m: ROFF_CHAR.get(m[1] or m[2], ""), s)
    return re.sub(r"\\\*.|\\", "", s).replace("\x00", "\\")


def from_man(data, name):
    out, buf, skip = [], [], None
    for line in data.decode("utf-8", "replace").split("\n"):
        m = re.match(r"[.']\s*([A-Za-z.]+)\s*(.*)", line)
        if skip:
            skip = None if m and m[1] == skip or line.strip() == ".." else skip
            continue
        if line.startswith(".so ") or line.startswith(".Dd"):      # alias, or mdoc: not handled
            return
        if not m:
            if line.startswith((" ", "\t")) or not line.strip():
                out.append(clean(" ".join(buf))); buf = []
            if not line.startswith((".", "'")):
                buf.append(roff_escapes(line))
        elif m[1] in ROFF_SKIP:
            skip = ROFF_SKIP[m[1]]
        elif m[1] in ROFF_TEXT:
            args = [a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', m[2].replace("\\ ", "\\~"))]
            buf.append(roff_escapes(("" if len(m[1]) == 2 and m[1] not in ("SM", "SB") else " ").join(args)))
        elif m[1] not in ("\\", "ie", "el", "if", "ds", "nr", "ad", "hy", "ne", "UR", "UE", "MT", "ME"):
            out.append(clean(" ".join(buf))); buf = []
    out.append(clean(" ".join(buf)))
    yield name, out


def from_pod(data, name):
    def code(m):
        kind, body = m[1], m[2]
        if kind == "E":
            return html.unescape(f"&{body};")
        if kind in "XZ":
            return ""
        return body.split("|")[0].lstrip("/") if kind == "L" else body
    out = []
    for p in re.split(r"\n\s*\n", data.decode("utf-8", "replace")):
        if p[:1] in (" ", "\t", "=", ""):
            continue
        p = re.sub(r"\b([A-Z])<<+\s(.*?)\s>>+", code, p, flags=re.S)
        for _ in range(4):
            p = re.sub(r"\b([A-Z])<([^<>]*)>", code, p)
        out.append(clean(p))
    yield name, out


def from_text(data, name):                              # Markdown-ish files
    text = re.sub(r"```.*?```", "", data.decode("utf-8", "replace"), flags=re.S)
    out = []
    for p in re.split(r"\n\s*\n", text):
        if p.startswith(("    ", "\t", "#", "|")):
            continue
        p = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", p)
        out.append(clean(re.sub(r"[`*]+", "", p)))
    yield name, out


def from_dict(data, name):                              # dictd: head words at column 0
    text = data.decode("utf-8", "replace")
    text = text[text.find("\n\n", 4000):]
    entries = re.split(r"\n(?=\S)", text)
    for i in range(0, len(entries), 150):
        out = []
        for e in entries[i:i + 150]:
            head, _, body = e.partition("\n")
            word = re.split(r"\s\\|,|\s{2}", head)[0].strip()
            rest = head.partition("\\, ")[2]            # gcide: part of speech, etymology
            body = re.sub(r"\[[^\[\]]{1,60}\]", "", rest + "\n" + body)
            body = re.sub(r"\[[^\[\]]{1,400}\]", "", body).replace("{", "").replace("}", "")
            body = re.sub(r"\(\d{4}-\d\d-\d\d\)", "", body)
            paras = [clean(re.sub(r"--[A-Z][\w. ]+$", "", clean(p))) for p in re.split(r"\n\s*\n", body)]
            paras = [p for p in paras if len(p) > 30]
            if paras:
                paras[0] = f"{word}: {paras[0]}"
            out += paras
        yield f"{name}#{i // 150}", out


def from_endless(data, name):                           # conversations, mission by mission
    text = data.decode("utf-8", "replace")
    for i, part in enumerate(re.split(r"\n(?=\S)", text)):
        out = [clean(s) for s in re.findall(r"^\s+`([^`]{20,})`", part, re.M)]
        yield f"{name}#{i}", [re.sub(r"<(\w+)>", r"\1", s).replace("&", "") for s in out]


def from_crawl(data, name):
    for i, part in enumerate(re.split(r"\n(?:%%%%\n.*?\n\n){12}", data.decode("utf-8", "replace"))):
        yield f"{name}#{i}", [clean(p) for p in re.split(r"\n\s*\n|%%%%", part)]


FORMATS = {   # kind: (function, path pattern)
    "html": (from_html, r"\.x?html?(\.en)?(\.gz)?$"),
    "xml": (from_xml, r"(\.docbook|\.page|help/C/.*\.xml)$"),
    "man": (from_man, r"/man/man\d/[^/]*\.gz$"),
    "pod": (from_pod, r"\.pod$"),
    "text": (from_text, r"\.(md|txt)(\.gz)?$"),
    "dict": (from_dict, r"\.dict\.dz$"),
    "endless": (from_endless, r"/data/.*\.txt$"),
    "crawl": (from_crawl, r"/dat/(database|descript)/[^/]*\.txt$"),
    "sword": (None, r"\.[bc]z[sz]$"),
}
SKIP_PATH = re.compile(
    r"(genindex|py-modindex|/search\.html|_modules/|_sources/|/_static/|changelog|changes|copying|licen[sc]e|"
    r"gfdl|/gpl|whatsnew_|release-?notes|/releases/|/arch/|trait\.impl|/implementors/|bibliography|"
    r"/examples?/|/src/|/copyright|credits|contributors|/rust-doc/html/(core|alloc|proc_macro|test)/|"
    r"book/(first|second|2018)-edition/|/tests?/|/log/|/images/|"
    r"(?-i:/HTML/(?!en/))|\.(?!en\.)[a-z]{2}(-[a-z]{2})?\.html)", re.I)


def sword_documents(files):                             # zText modules: one block, one document
    for path in sorted(files):
        if not path.endswith("zs"):
            continue
        index, blocks = files[path], files[path[:-1] + "z"]
        for i in range(len(index) // 12):
            start, size, _ = struct.unpack_from("<III", index, i * 12)
            if not size:
                continue
            text = zlib.decompress(blocks[start:start + size]).decode("utf-8", "replace")
            text = re.sub(r"<(br|p|lb|/p|/div|div|/title|/chapter|lg|l)\b[^>]*>", "\n\n", text)
            text = html.unescape(re.sub(r"<[^>]*>", "", text)).replace("\x00", "")
            yield f"{path}#{i}", [clean(p) for p in re.split(r"\n\s*\n|\r|\n(?=\s)", text)]


def documents(deb, kind, only):
    func, pattern = FORMATS[kind]
    pattern, only = re.compile(pattern), re.compile(only or "")
    pipe = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE)
    sword = {}
    with tarfile.open(fileobj=pipe.stdout, mode="r|") as tar:
        for m in tar:
            path = m.name.lstrip(".")
            if not m.isfile() or m.size > 60e6 or not pattern.search(path):
                continue
            if SKIP_PATH.search(path) or not only.search(path):
                continue
            data = tar.extractfile(m).read()
            if func is None:
                sword[path] = data
                continue
            if data[:2] == b"\x1f\x8b":
                data = gzip.GzipFile(fileobj=io.BytesIO(data)).read()
            try:
                yield from func(data, path)
            except (lxml.etree.LxmlError, ValueError, RecursionError) as e:
                print(f"skipped {path}: {e}", file=sys.stderr)
    pipe.wait()
    yield from sword_documents(sword)


def package(job):
    name, kind, cap, flag, only, debs = job
    deb = sorted(f for f in os.listdir(debs) if f.startswith(name + "_"))[-1]
    out = []
    for path, paras in documents(os.path.join(debs, deb), kind, None if only == "-" else only):
        paras = [p for p in paras if is_prose(p)]
        if sum(map(len, paras)) >= DOC_MIN:
            out.append((path, paras))
    field = lambda f: subprocess.run(["dpkg-deb", "-f", os.path.join(debs, deb), f],
                                     capture_output=True, text=True).stdout.strip()
    return name, field("Version"), out


# ---------------------------------------------------------------- main

def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    ap.add_argument("--debs", default="debs")
    ap.add_argument("--jobs", type=int, default=2)
    args = ap.parse_args()
    table = [l.rstrip("\n").split("\t") for l in open(os.path.join(HERE, "packages.tsv"))
             if l.strip() and not l.startswith("#")]
    os.makedirs(args.debs, exist_ok=True)
    os.makedirs(args.out, exist_ok=True)
    have = {f.split("_")[0] for f in os.listdir(args.debs)}
    need = [r[0] for r in table if r[0] not in have]
    if need:
        subprocess.run(["apt-get", "download"] + need, cwd=args.debs, check=True)

    jobs = [(r[0], r[1], float(r[2]), r[3], r[4], args.debs) for r in table]
    with multiprocessing.Pool(args.jobs) as pool:
        found = {n: (v, d) for n, v, d in pool.imap_unordered(package, jobs)}

    # Held-out documents first, so that training loses every paragraph they share.
    seen, held, held_ids, report = set(), [], set(), []
    for r in table:
        if r[3] != "h":
            continue
        got = 0
        for path, paras in sorted(found[r[0]][1], key=lambda d: rank(r[0], d[0])):
            if got >= HELDOUT_PER_PACKAGE:
                break
            keep, new = [], set()
            for p in paras:
                f = fingerprint(p)
                if f not in seen and f not in new:
                    new.add(f)
                    keep.append(p)
            text = "\n\n".join(keep)
            size = len(text.encode())
            if not HELD_MIN <= size <= HELD_MAX or got + size > HELDOUT_PER_PACKAGE + 8000:
                continue
            seen |= new
            got += size
            held.append((r[0], path, text))
            held_ids.add((r[0], path))
    held_prints = set(seen)

    train = []
    for r in table:
        version, docs = found[r[0]]
        cap, used, ndocs = float(r[2]) * 1e6, 0, 0
        for path, paras in sorted(docs, key=lambda d: rank("train", r[0], d[0])):
            if (r[0], path) in held_ids or used >= cap:
                continue
            keep = []
            for p in paras:
                f = fingerprint(p)
                if f not in seen:
                    seen.add(f)
                    keep.append(p)
            text = "\n\n".join(keep)
            if len(text) < DOC_MIN:
                continue
            train.append((rank("order", r[0], path), text))
            used += len(text.encode())
            ndocs += 1
        report.append({"package": r[0], "version": version, "licence": r[5],
                       "train_documents": ndocs, "train_bytes": used})
        print(f"{r[0]:28} {ndocs:6} docs {used / 1e6:8.2f} MB", file=sys.stderr)
    train = [t for _, t in sorted(train)]
    held.sort(key=lambda d: rank("order", d[0], d[1]))

    assert not any(fingerprint(p) in held_prints for t in train for p in t.split("\n\n"))
    with open(os.path.join(args.out, "train.txt"), "w", encoding="utf-8") as f:
        f.write(f"\n{SEP}\n".join(train) + "\n")
    with open(os.path.join(args.out, "heldout.txt"), "w", encoding="utf-8") as f:
        f.write("\n\n".join(t for _, _, t in held) + "\n")
    with open(os.path.join(args.out, "manifest.json"), "w") as f:
        json.dump({"packages": report,
                   "heldout": [{"package": a, "document": b, "bytes": len(t.encode())} for a, b, t in held]},
                  f, indent=1)
    print(f"train {sum(len(t.encode()) for t in train) / 1e6:.1f} MB in {len(train)} documents, "
          f"held out {sum(len(t.encode()) for *_, t in held) / 1e3:.0f} kB in {len(held)}", file=sys.stderr)


if __name__ == "__main__":
    main()
