-- The tables of a catalog. Samples are numbered in the order of sets, splits, shards and rows, so the samples of a
-- split are a range of numbers.
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE splits (
  id INTEGER PRIMARY KEY, set_name TEXT NOT NULL, split TEXT NOT NULL,
  first INTEGER NOT NULL, last INTEGER NOT NULL, -- samples first … last − 1
  seconds REAL NOT NULL -- of clips, all together
);
CREATE TABLE shards (id INTEGER PRIMARY KEY, split INTEGER NOT NULL, name TEXT NOT NULL, first INTEGER NOT NULL);
CREATE TABLE videos (
  id INTEGER PRIMARY KEY, uid TEXT NOT NULL,
  seconds REAL NOT NULL, samples INTEGER NOT NULL, lost INTEGER NOT NULL,
  status TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL -- of the video's own row in the ledger
);
CREATE TABLE samples (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL, video INTEGER NOT NULL, start REAL NOT NULL, stop REAL NOT NULL,
  text TEXT NOT NULL, fps REAL NOT NULL, first_frame INTEGER NOT NULL, clip_frames INTEGER NOT NULL,
  jpg_offset INTEGER NOT NULL, jpg_size INTEGER NOT NULL, json_offset INTEGER NOT NULL, json_size INTEGER NOT NULL,
  mp4_offset INTEGER NOT NULL, mp4_size INTEGER NOT NULL,
  tags TEXT NOT NULL -- JSON: field of the record → its classes
);
CREATE TABLE video_splits (
  split INTEGER NOT NULL, video INTEGER NOT NULL, samples INTEGER NOT NULL, PRIMARY KEY (split, video)
) WITHOUT ROWID;
CREATE TABLE video_tags (
  kind TEXT NOT NULL, tag INTEGER NOT NULL, video INTEGER NOT NULL, samples INTEGER NOT NULL,
  PRIMARY KEY (kind, tag, video)
) WITHOUT ROWID;
CREATE TABLE tag_counts (
  kind TEXT NOT NULL, tag INTEGER NOT NULL, samples INTEGER NOT NULL, videos INTEGER NOT NULL, PRIMARY KEY (kind, tag)
) WITHOUT ROWID;
CREATE TABLE words (word TEXT NOT NULL, samples INTEGER NOT NULL); -- the commonest in captions
CREATE TABLE video_scenarios (
  scenario TEXT NOT NULL, uid TEXT NOT NULL, PRIMARY KEY (scenario, uid)
) WITHOUT ROWID;
CREATE TABLE spans (
  video INTEGER NOT NULL, start REAL NOT NULL, stop REAL NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE losses ( -- rows of the ledger that are not packed
  id INTEGER PRIMARY KEY, set_name TEXT NOT NULL, item TEXT NOT NULL, video_uid TEXT NOT NULL,
  status TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE TABLE loss_reasons (
  set_name TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL, items INTEGER NOT NULL
);
CREATE TABLE histograms ( -- numbers of samples or videos by intervals, low ≤ value < high
  name TEXT NOT NULL, split INTEGER NOT NULL, low REAL NOT NULL, high REAL NOT NULL, count INTEGER NOT NULL
);
CREATE VIRTUAL TABLE captions USING fts5 (
  text, content='samples', content_rowid='id', tokenize="unicode61 remove_diacritics 2"
);
CREATE VIRTUAL TABLE video_words USING fts5 (
  words, content='', detail=none, columnsize=0, tokenize="unicode61 remove_diacritics 2"
);
CREATE VIRTUAL TABLE vocabulary USING fts5vocab (captions, 'row');
