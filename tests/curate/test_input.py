"""What is read from every kind of file, what is told of broken ones, and how much memory that takes."""

import bz2
import gzip
import io
import json
import lzma
import os
import tracemalloc
from pathlib import Path

import fsspec
import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from components.curate.reading.encoding import UnreadableError, decode
from components.curate.reading.formats import read
from components.curate.reading.licence import licence_of
from components.curate.reading.listing import list_files
from components.curate.reading.manual import plain
from components.curate.shards.plan import draw_sample, plan_shards, read_plan, write_plan
from stagecraft.contract.errors import UserError

LIMIT = 100_000
COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
            ".zst": lambda data: zstandard.ZstdCompressor().compress(data)}
TEXT = "A text of some length about rivers and lakes.\nIt has two lines.\n"


def texts(where: str | Path, limit: int = LIMIT) -> tuple[dict[str, str], dict[str, str]]:
    """(document -> text, broken -> why) of all files of a place."""
    broken: dict[str, str] = {}
    found = {f"{document.metadata['source']}/{document.metadata['path']}": document.text
             for file in list_files(str(where)) for document in read(file, broken.__setitem__, limit)}
    return found, broken


@pytest.mark.parametrize("suffix", ["", *COMPRESS])
def test_text_and_rows_in_every_compression(tmp_path, suffix):
    pack = COMPRESS.get(suffix, bytes)
    rows = "".join(json.dumps({"text": f"{TEXT}{number}"}) + "\n" for number in range(3))
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(TEXT.encode()))
    (tmp_path / f"b.jsonl{suffix}").write_bytes(pack(rows.encode()))
    found, broken = texts(tmp_path)
    assert not broken and found == {f"input/a.txt{suffix}": TEXT, **{f"input/b.jsonl{suffix}:{n + 1}": f"{TEXT}{n}" for n in range(3)}}


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1, max_size=5))
def test_rows_come_back_as_they_were(tmp_path_factory, values):
    root = tmp_path_factory.mktemp("rows")
    (root / "a.jsonl").write_text("".join(json.dumps({"text": value}) + "\n" for value in values), encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": values}), root / "b.parquet")
    found, broken = texts(root)
    assert not broken
    assert [found[f"input/{name}:{row}"] for name in ("a.jsonl", "b.parquet") for row in range(1, len(values) + 1)] == [*values, *values]


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_uri_gives_what_the_directory_gives(tmp_path, protocol):
    root = f"memory:/{tmp_path}" if protocol == "memory" else f"file://{tmp_path}"
    filesystem, path = fsspec.core.url_to_fs(root)
    filesystem.makedirs(f"{path}/web", exist_ok=True)
    filesystem.pipe_file(f"{path}/a.txt", TEXT.encode())
    filesystem.pipe_file(f"{path}/web/b.md.gz", gzip.compress(TEXT.encode()))
    assert texts(root) == ({"input/a.txt": TEXT, "web/b.md.gz": TEXT}, {})


def test_directories_named_like_our_sources_are_the_users(tmp_path):
    for name in ("x.txt", "input/x.txt", "stdlib/x.py", "mine/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(TEXT)
    for where in (str(tmp_path), f"file://{tmp_path}"):
        documents = [document for file in list_files(where) for document in read(file, print, LIMIT)]
        assert len({document.id for document in documents}) == 4 and {document.metadata["licence"] for document in documents} == {""}
        assert {(document.metadata["source"], document.metadata["path"]) for document in documents} == {
            ("input", "x.txt"), ("input", "input/x.txt"), ("input", "stdlib/x.py"), ("mine", "x.txt")}


def test_names_that_are_no_utf8_are_read(tmp_path):
    for name in (b"caf\xe9.txt", b"caf\xe8.txt", b"d\xe9/a.txt"):
        path = Path(os.fsdecode(os.fsencode(tmp_path / "texts") + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEXT)
    (shard,) = plan_shards(draw_sample(list_files(str(tmp_path / "texts")), LIMIT), 1, "basis")
    write_plan(tmp_path, shard)
    found = [document for file in read_plan(tmp_path, shard.key) for document in read(file, lambda *told: pytest.fail(str(told)), LIMIT)]
    names = {f"{document.metadata['source']}/{document.metadata['path']}".encode() for document in found}
    assert names == {rb"input/caf\udce9.txt", rb"input/caf\udce8.txt", rb"d\udce9/a.txt"} and len({each.id for each in found}) == 3


def test_broken_files_are_told_by_name_and_reading_goes_on(tmp_path):
    rows = [json.dumps({"text": "one", "id": 7}), "{broken", json.dumps({"body": "x"}), "", json.dumps({"text": "y" * LIMIT}),
            json.dumps({"text": "again", "id": 7}), json.dumps({"text": "last", "license": "MIT", "url": "u"})]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    many = gzip.compress("".join(json.dumps({"text": f"{n} {n * n}"}) + "\n" for n in range(20_000)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(many[:len(many) // 2])
    (tmp_path / "binary.txt").write_bytes(b"abc\0def")
    (tmp_path / "long.txt").write_text("x" * (LIMIT + 1))
    (tmp_path / "fake.parquet").write_text("no parquet")
    (tmp_path / "fake.warc").write_text("no web archive")
    (tmp_path / "fake.txt.zst").write_text("no zstd")
    parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "other.parquet")
    found, broken = texts(tmp_path)
    assert {name: text for name, text in found.items() if "rows" in name} == {"input/rows.jsonl:1": "one", "input/rows.jsonl:7": "last"}
    assert sum("cut" in name for name in found) > 5000 and "read up to row" in broken["input/cut.jsonl.gz"]
    assert broken["input/rows.jsonl:5"] == f"longer than {LIMIT} bytes (curate.max_document_bytes)" == broken["input/long.txt"]
    assert broken["input/rows.jsonl:6"] == "duplicate id 7: row 1 has it"
    assert broken.keys() == {f"input/{name}" for name in (
        "rows.jsonl:2", "rows.jsonl:3", "rows.jsonl:5", "rows.jsonl:6", "cut.jsonl.gz", "binary.txt", "long.txt", "fake.parquet",
        "fake.warc", "fake.txt.zst", "other.parquet")}


def test_rows_that_no_reader_takes_are_left_out_alone(tmp_path):
    lines = [json.dumps({"text": "one", "id": "\ud800", "url": "\udc00"}), "[" * 50_000, json.dumps({"text": "last"})]
    (tmp_path / "deep.jsonl").write_text("\n".join(lines))
    raw = b"good" + b"ab\xffcd" + "größer".encode()
    ends = b"".join(end.to_bytes(4, "little") for end in (0, 4, 9, len(raw)))
    column = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(raw)])
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "bytes.parquet")
    found, broken = texts(tmp_path)
    assert found == {"input/deep.jsonl:1": "one", "input/deep.jsonl:3": "last", "input/bytes.parquet:1": "good",
                     "input/bytes.parquet:3": "größer"}
    assert broken.keys() == {"input/deep.jsonl:2", "input/bytes.parquet:2"}
    assert broken["input/deep.jsonl:2"].startswith("not JSON: ") and broken["input/bytes.parquet:2"].startswith("not UTF-8: ")


def test_memory_does_not_grow_with_the_file(tmp_path):
    row = json.dumps({"text": "word " * 1000}) + "\n"
    with gzip.open(tmp_path / "large.jsonl.gz", "wt", compresslevel=1) as stream:
        for _ in range(4000):
            stream.write(row)
    (tmp_path / "line.jsonl").write_text('{"text": "' + "x" * 20_000_000)
    tracemalloc.start()
    try:
        count = sum(1 for file in list_files(str(tmp_path)) for _ in read(file, lambda *_: None, LIMIT))
        assert count == 4000 and tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


PLANTED = {
    "utf-16": "Зеленая река течет мимо старого города, и дети играют на берегу.", "utf-8-sig": "Ein schöner Tag.",
    "cp1252": "Le château était fermé, mais le café à côté était ouvert. Où êtes-vous allés après le déjeuner, mes chers élèves ?" * 3,
    "cp1251": "Зеленая река течет мимо старого города, и дети играют на берегу. Потом они идут домой, где их ждет ужин." * 3,
    "shift_jis": "川は古い町のそばを流れ、子供たちは岸で遊んでいます。それから彼らは家に帰ります。" * 3,
}


@pytest.mark.parametrize("encoding", PLANTED)
def test_encodings_are_found(encoding):
    text, _ = decode(PLANTED[encoding].encode(encoding))
    assert text == PLANTED[encoding]


LEGACY = {
    "cp1252": [
        "The Brontë sisters wrote their novels in a parsonage in Yorkshire. Their father read the newspaper aloud every evening.",
        "We met at the café near the station and talked about the new railway for two hours before the train came.",
        "It costs £20 to enter the museum, and the guide book is another £5. Children pay half.",
        "The temperature rose to 35°C in the afternoon, which is unusual for this valley in May.",
        "He’s written a “résumé” – quite a long one – for the job at the bakery, and they liked it very much.",
        "L'été dernier, nous avons traversé la forêt à pied jusqu'à la rivière, où des pêcheurs préparaient le dîner.",
        "Die Straße führt über die Brücke nach München, wo die Bäcker schon früh am Morgen geöffnet haben.",
        "El niño llegó mañana por la mañana a la estación y compró un periódico español para su señora madre.",
        "© 2019 The Authors. This is an open access article distributed under the terms of the licence.",
        "Naïve Bayes classifiers are a family of simple probabilistic classifiers based on applying a theorem."],
    "cp1251": ["Это открытая статья, она распространяется на условиях лицензии.",
               "Version 1.2: исправлены ошибки в библиотеке, see CHANGES for details",
               "Все люди рождаются свободными и равными в своем достоинстве и правах."],
    "koi8_r": ["Поддержка русского языка в системе была добавлена в прошлом году."],
    "cp1253": ["Η βιβλιοθήκη είναι ανοικτή κάθε μέρα από το πρωί μέχρι το βράδυ."],
    "cp1250": ["Zażółć gęślą jaźń, a rzeka płynie obok starego miasta.",
               "A zöld folyó a város mellett folyik, és a gyerekek a partján játszanak; az öregember közben tűzifát gyűjt a szőlő mögött."],
    "iso8859-2": ["Řeka teče kolem starého města a děti si hrají na břehu, dokud šťastně nepřijdou domů na večeři."],
    "cp1254": ["Yeşil ırmak eski şehrin yanından akıyor ve çocuklar kıyıda oynuyor, güneş doğuyor."],
    "euc_kr": ["강은 오래된 도시 옆을 흐르고 아이들은 강가에서 놀고 있습니다.",
               "def area(width, height):\n    # 넓이를 제곱미터로 돌려줍니다\n    if width < 0:\n        raise ValueError(width)\n"
               "    return width * height\n\n\ndef total(items):\n    # 모든 항목의 가격을 더합니다\n    return sum(items)\n"],
}


@pytest.mark.parametrize(("encoding", "text"), [(encoding, text) for encoding, several in LEGACY.items() for text in several])
def test_ordinary_sentences_in_legacy_encodings_are_read_as_they_were_written(encoding, text):
    assert decode(text.encode(encoding))[0] == text


def test_what_is_declared_comes_first_where_it_fits():
    text = "Ein kurzer Satz: ð, þ."
    assert decode(text.encode("latin-1"), "ISO-8859-1") == (text, "cp1252")
    for encoding, declared in (("koi8-r", "KOI8-R"), ("iso8859-7", "iso-8859-7"), ("gb18030", "gb2312"), ("iso2022_jp", "ISO-2022-JP")):
        short = {"koi8-r": "Да", "iso8859-7": "Ώρα", "gb18030": "好", "iso2022_jp": "川の町"}[encoding]
        assert decode(short.encode(encoding), declared) == (short, encoding)
    assert decode("Größe".encode(), "iso-8859-1") == ("Größe", "utf-8")
    for unusable in ("no-such-encoding", "rot13", "\0", "utf-16", "x-user-defined"):
        assert decode(text.encode("latin-1"), unusable) == (text, "cp1252") and decode(b"plain", unusable) == ("plain", "utf-8")
    with pytest.raises(UnreadableError):
        decode(b"\x81\xff\x00", "iso-8859-1")


@pytest.mark.parametrize(("label", "encoding", "text"), [
    ("windows-874", "cp874", "แม่น้ำ"), ("TIS-620", "cp874", "แม่น้ำ"), ("iso-8859-8-i", "iso8859-8", "נהר"), ("x-euc-jp", "euc_jp", "川"),
    ("x-sjis", "cp932", "川"), ("windows-31j", "cp932", "川"), ("x-gbk", "gb18030", "河"), ("windows-949", "cp949", "강"),
    ("big5-hkscs", "big5hkscs", "河")])
def test_labels_are_understood_as_browsers_do(label, encoding, text):
    assert decode(text.encode(encoding), label) == (text, encoding)


def test_pages_are_read_in_the_charset_they_declare(tmp_path):
    body = "".join(f"<p>Пункт {n}: река течет мимо старого города, и дети играют на берегу до вечера.</p>" for n in range(5))
    for encoding, head in (("koi8-r", "<meta charset='koi8-r'>"),
                           ("iso8859-5", "<META http-equiv=Content-Type content='text/html; charset=ISO-8859-5'>")):
        page = f"<html><head>{head}<title>t</title></head><body><article>{body}</article></body></html>".encode(encoding)
        (tmp_path / f"{encoding}.html").write_bytes(page)
    page = f"<html><body><article>{body}</article></body></html>".encode("iso8859-5")
    (tmp_path / "crawl.warc.gz").write_bytes(archive([page], "text/html; charset=iso-8859-5"))
    encodings = {document.metadata["path"]: (document.metadata["encoding"], "Пункт 4: река" in document.text)
                 for file in list_files(str(tmp_path)) for document in read(file, print, LIMIT)}
    assert encodings == {"koi8-r.html": ("koi8-r", True), "iso8859-5.html": ("iso8859-5", True), "crawl.warc.gz:1": ("iso8859-5", True)}


def test_text_decoded_wrongly_before_is_mended_and_binary_refused():
    assert decode("Le château était fermé".encode().decode("cp1252").encode())[0] == "Le château était fermé"
    with pytest.raises(UnreadableError, match="binary"):
        decode(b"\x89PNG\0\0")


def archive(pages: list[bytes], content_type: str = "text/html") -> bytes:
    stream = io.BytesIO()
    writer = WARCWriter(stream, gzip=True)
    for number, page in enumerate(pages):
        headers = StatusAndHeaders("200 OK", [("Content-Type", content_type)], protocol="HTTP/1.0")
        url = f"http://example.com/{number}"
        writer.write_record(writer.create_warc_record(url, "response", payload=io.BytesIO(page), http_headers=headers))
    return stream.getvalue()


def test_pages_of_a_web_archive_lose_their_navigation(tmp_path):
    body = "".join(f"<p>Paragraph {n} tells at some length what the river does in the season it is about, and why.</p>" for n in range(5))
    head = "<nav><a href='/'>Home</a><a href='/x'>Contact</a></nav>"
    page = f"<html><body>{head}<article><h1>Rivers</h1>{body}</article></body></html>".encode()
    (tmp_path / "crawl.warc.gz").write_bytes(archive([page, b"<html><body></body></html>"]))
    (tmp_path / "page.html").write_bytes(page)
    found, broken = texts(tmp_path)
    assert broken == {"input/crawl.warc.gz:2": "a page without text"}
    for text in (found["input/crawl.warc.gz:1"], found["input/page.html"]):
        assert "Paragraph 4" in text and "Contact" not in text


def test_manual_pages_are_words():
    page = '.TH X 1\n.SH NAME\nx \\- does \\fBthings\\fR\n.\\" a comment\n.PP\n.BR ls (1)\nh\\(^otel, caf\\[u00E9]\n'
    assert plain(page).split() == "NAME x - does things ls(1) hôtel, café".split()
    assert plain(".so man1/y.1") == ""


def test_licences_are_what_is_said_and_never_guessed(tmp_path):
    package = tmp_path / "p-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Name: p\nLicense-Expression: MIT OR Apache-2.0\n\nText")
    assert licence_of("licences", str(package / "LICENSE"), "words") == "MIT OR Apache-2.0"
    assert licence_of("stdlib", "/x/os.py", "") == "PSF-2.0"
    assert licence_of("input", "/x/a.c", "// SPDX-License-Identifier: GPL-2.0-only\nint x;") == "GPL-2.0-only"
    text = "Permission is hereby granted, free of charge, to any person obtaining a\ncopy of this"
    assert licence_of("input", "/x/COPYING", text) == "MIT"
    assert licence_of("input", "/x/a.txt", TEXT) == ""


def test_what_is_hidden_linked_or_unknown_is_left_out(tmp_path):
    for name in (".hidden/a.txt", "__pycache__/a.py", "web/a.txt", "a.txt", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(TEXT)
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    assert [(file.source, file.name) for file in list_files(str(tmp_path))] == [("input", "a.txt"), ("web", "a.txt")]
    assert [file.name for file in list_files(str(tmp_path / "a.txt"))] == ["a.txt"]


@pytest.mark.parametrize("where, message", [("nowhere", "no such directory or file"), ("nothing://x", "cannot list")])
def test_places_that_are_none_are_one_line(where, message):
    with pytest.raises(UserError) as caught:
        list_files(where)
    assert message in str(caught.value) and "\n" not in str(caught.value)
