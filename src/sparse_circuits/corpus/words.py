"""Name pools of the idiom generator: common short English and programming words."""

NOUNS: tuple[str, ...] = tuple(
    """
    name value total count size width height mode path key limit index level state text line start end
    left right depth weight length color title label score rate step offset scale order group kind
    status result buffer cache config parent root target source owner data speed price amount number
    field block table record request message current first last shape style theme token prefix
    """.split()
)
"""Names of single values: variables, arguments and attributes alike."""

HELD_OUT_NAMES: tuple[str, ...] = tuple(
    """
    volume angle margin radius factor budget column region version address
    """.split()
)
"""Names used as variables and read as attributes, but never in `self.x = x` nor in a swap."""

SINGULARS: tuple[str, ...] = tuple(
    """
    item node row user file word page task part point event entry child edge card job tag layer worker
    option player rule image letter order pair char link report test box chunk cell color field group
    number object model unit sample
    """.split()
)
"""Names of one thing of a collection; the plural stands at the same place of `PLURALS`."""

PLURALS: tuple[str, ...] = tuple(
    """
    items nodes rows users files words pages tasks parts points events entries children edges cards jobs
    tags layers workers options players rules images letters orders pairs chars links reports tests
    boxes chunks cells colors fields groups numbers objects models units samples
    """.split()
)
"""Names of collections; the singular stands at the same place of `SINGULARS`."""

LIST_NAMES: tuple[str, ...] = tuple(
    """
    values rows items numbers points data table grid scores sizes weights counts cells levels steps
    ranks prices limits totals colors widths heights rates pairs groups samples batch matrix board lines
    moves blocks keys ids series shape order marks codes bounds lengths offsets indices parts
    """.split()
)
"""Names that lists of numbers are assigned to, flat or nested alike."""

FLAGS: tuple[str, ...] = tuple(
    """
    ready done flag valid active open closed empty enabled visible locked running found failed loaded
    saved changed hidden public strict quiet fast debug force dirty fresh alive busy full stopped
    started passed allowed known shared local remote online matched
    """.split()
)
"""Names of truth values."""

RESOURCES: tuple[str, ...] = tuple(
    """
    lock session timer pool guard client channel handle scope stream server device store driver writer
    reader socket queue screen window
    """.split()
)
"""Names of objects that serve as context managers."""

VERBS: tuple[str, ...] = tuple(
    """
    get set run make load save read build find check update start stop add remove create parse write
    send count show move copy merge split join sort filter apply reset open close print walk scan test
    handle process compute collect fetch render draw select store search convert format validate choose
    prepare clean init call visit follow measure compare
    """.split()
)
"""First words of function names."""

CALLS: tuple[str, ...] = tuple(
    """
    len str int check update process convert parse build handle clean measure load find abs round
    compute apply normalize encode decode lookup scale_of size_of select visit render
    """.split()
)
"""Functions that take one value, called in bodies."""

METHODS: tuple[str, ...] = tuple(
    """
    update append send add push remove write apply check process insert handle visit store
    """.split()
)
"""Methods that take one value, called on objects."""

CLASSES: tuple[str, ...] = tuple(
    """
    Node Item User Task Point Table Graph Parser Reader Writer Config Queue Stack Tree Cache Client
    Server Event Record Report Shape Circle Square Player Board Card Game Model Layer Worker Session
    Request Response Message Buffer Counter Timer Logger Handler Builder Loader Window Button Field
    Account Order Product Store Document Page Token Group Rule Image Sensor Robot Car Animal Person
    """.split()
)
"""Class names."""

READ_STEMS: tuple[str, ...] = tuple(
    """
    input source users config data settings words items names prices scores orders events template
    readme history lines rules keys samples
    """.split()
)
"""Stems of files that are read."""

WRITE_STEMS: tuple[str, ...] = tuple(
    """
    output result report summary log target copy backup export errors final table totals results stats
    archive dump cache trace notes
    """.split()
)
"""Stems of files that are written."""

ENDINGS: tuple[str, ...] = tuple(
    """
    txt txt json csv log
    """.split()
)
"""File name endings."""

MODULES: tuple[str, ...] = tuple(
    """
    os sys re json math time random logging string itertools functools collections copy csv io datetime
    shutil tempfile threading types
    """.split()
)
"""Modules of the standard library."""

IMPORTS: tuple[str, ...] = (
    "from collections import defaultdict",
    "from pathlib import Path",
    "from dataclasses import dataclass",
    "from functools import partial",
    "from itertools import chain",
    "from typing import Any",
    "import os.path",
    "import numpy as np",
)
"""Import lines other than of a whole standard module."""

SPEAKING_METHODS: tuple[str, ...] = tuple(
    """
    info debug warning error write send put add_line set_title push emit_text append log say fail tell
    echo post publish record comment set_status
    """.split()
)
"""Methods that take a message."""

EXCEPTIONS: tuple[str, ...] = tuple(
    """
    ValueError TypeError KeyError IndexError RuntimeError OSError AttributeError ZeroDivisionError
    LookupError NotImplementedError StopIteration TimeoutError
    """.split()
)
"""Exceptions, raised and caught."""

SPEAKERS: tuple[str, ...] = tuple(
    """
    print print print print log log send send write show warn info error debug notify report
    """.split()
)
"""Functions that take a message for people."""

TEXT_NOUNS: tuple[str, ...] = tuple(
    """
    file value name user list table total count number result item key path line task page request
    message error test data input output server client index text word row column order event config
    option model image record time day world state size limit type code step job group part report price
    color title
    """.split()
)
"""Things that messages speak of."""

TEXT_VERBS: tuple[str, ...] = tuple(
    """
    found missing done loaded saved ready started stopped closed open failed sent received added removed
    updated created deleted changed expected allowed required used read written empty invalid valid
    complete finished running waiting moved copied sorted checked passed
    """.split()
)
"""What messages say of the things."""

TEXT_LINKS: tuple[str, ...] = tuple(
    """
    in for the of to with from at by on not and is no all new this each or after before without into
    over than
    """.split()
)
"""Words between the things of a message."""

TEXT_OTHERS: tuple[str, ...] = tuple(
    """
    account action address age agent air amount answer area army arrow author autumn baby back bag ball
    band bank base basket beach bear beauty bed bell bird block blood board boat body bone book border
    bottle bottom box boy branch bread bridge brother budget build building burn bus business butter
    button cake call camp car card care case castle cat cause cell center chair chance change channel
    child church circle city claim class clean clear clock cloud club coast coat coffee cold college
    company copy corn corner cost cotton country course court cover crowd culture current curve dance
    danger dark date daughter deal death debt deep degree design desk dinner direction dirt doctor dog
    dollar door double draft drawing dream dress drink drive dry dust early earth east edge effort egg
    empire end energy engine evening exact exchange eye face fact factory fair fall family farm fast
    father fear feather field fight figure film finger fire fish flag flat flight floor flower folder
    food foot force forest form frame free fresh friend front fruit full future game garden gate general
    gift girl glass goal gold good grain grass great green ground growth guess guide gun hair half hand
    happy harbor hard hat head heart heat heavy height help hill history hole home honest hope horse
    hospital hot hotel hour house human hunter ice idea inch iron island issue joint journey joy judge
    juice jump kitchen knee knife lake lamp land language large late laugh law leader leaf left leg
    lesson letter level library life light limit lion liquid little local lock long loose loss loud love
    low lunch machine main major manager map market master match matter meal measure meat medicine
    meeting member memory metal method middle mile milk mind minor minute mirror money month moon
    morning mother motor mountain mouth movie music narrow nation nature neck needle nerve network news
    night north nose note novel ocean office oil old orange outside owner pain paint pair paper parent
    park partner party past path pattern payment peace pen pencil people period phone picture piece
    pilot place plain plan plane plant plate play pocket point police pool poor port position pound
    power press prize problem process profit program proof public pull pump quality quarter queen
    question quick quiet rail rain range rate raw reason regular rent request rest rice rich ring river
    road rock roll roof room root rope rough round royal rule safe salt sand scale school science screen
    sea season seat second secret section seed service shade shape sharp sheep sheet ship shirt shoe
    shop short shoulder side sign silver simple sister skin sky sleep slow small smile smoke smooth snow
    social soft soil soldier song soup source south space special speech speed spoon spring square stage
    stamp star station steam steel stone store storm story street strong student sugar summer sun
    support surface sweet swim table tail tall taste teacher team tent theory thick thin thread ticket
    tight tired tooth top town toy track trade train travel tree trip trouble truck trust truth twin
    uncle unit valley video view village voice walk wall war warm watch water wave way weather week
    weight west wheel white wide wife wild wind window wine winter wise woman wonder wood word work
    world yard year yellow young
    """.split()
)
"""Everything else that messages speak of: common words, most of several tokens."""

KEYS: tuple[str, ...] = tuple(
    """
    name id key value type mode size path user text data left right red green blue start stop open
    closed yes no on off fast slow low high small large first last up down all none total count title
    color index level state error info debug test main auto
    """.split()
)
"""Short words that stand alone as string: keys, modes, names."""

MEASURED_STARTS: tuple[str, ...] = tuple(
    """
    Total Count Name Value Result Size Price Score User File
    """.split()
)
"""Words that open a message which ends in a value: `print("Total is", total)`."""
