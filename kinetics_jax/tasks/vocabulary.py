"""Words beside numbers: units and what they are worth, scales, number words, words that change a value."""

from __future__ import annotations

from fractions import Fraction


def each_of(text: str) -> list[str]:
    """The words of a text, one by one: tables of words stand as text."""
    return text.split()


# Of each kind of quantity (with its power, where it is not the first), its units as `name=value in the kind's first`;
# spellings of one unit are joined by `|`.
_UNITS = {
    "length": "m|meter|metre=1 mm|millimeter|millimetre=1/1000 cm|centimeter|centimetre=1/100 dm|decimeter=1/10 "
    "km|kilometer|kilometre=1000 in|inch=127/5000 ft|foot|feet=381/1250 yd|yard=1143/1250 mi|mile=201168/125",
    "length 3": "l|liter|litre=1/1000 ml|milliliter|millilitre|cc=1/1000000 gal|gallon=473176473/125000000000 "
    "quart=473176473/500000000000 pint=473176473/1000000000000 cup=473176473/2000000000000",
    "length 2": "acre=316160658/78125 hectare|ha=10000",
    "length 1 time -1": "mph=1397/3125 kph|kmph|kmh=5/18 knot=463/900",
    "mass": "g|gram|gramme=1 mg|milligram=1/1000 kg|kilogram|kilo=1000 oz|ounce=45359237/1600000 "
    "lb|lbs|pound=45359237/100000 tonne=1000000",
    "time": "s|sec|second=1 ms|millisecond=1/1000 min|minute=60 h|hr|hour=3600 day=86400 week=604800 month|mo=2629746 "
    "yr|year=31556952 decade=315569520 century|centuries=3155695200",
    "US money": "$|dollar|usd|buck=1 cent|¢=1/100 penny|pennies=1/100 nickel=1/20 dime=1/10",
    "euros": "€|eur|euro=1",
    "pounds": "£|gbp=1 pence=1/100",
    "yen": "¥|yen|jpy=1",
    "rupees": "₹|rupee|rs|inr=1",
    "angle": "deg|degree=1",
    "radians": "rad|radian=1",
    "percent": "%|percent|pct|percentage=1",
    "data": "byte=1 kb|kilobyte=1000 mb|megabyte=1000000 gb|gigabyte=1000000000 bit=1/8",
    "temperature C": "celsius=1",
    "temperature F": "fahrenheit=1",
    "temperature K": "kelvin=1",
    "force": "n|newton=1",
    "energy": "j|joule=1 kj|kilojoule=1000 cal|calorie=523/125 kcal=4184",
    "power": "w|watt=1 kw|kilowatt=1000",
    "frequency": "hz|hertz=1 khz=1000",
    "voltage": "v|volt=1",
    "current": "ampere|amp=1",
    "resistance": "ohm=1",
    "nothing": "unit=1",
}
Kinds = tuple[tuple[str, int], ...]  # a product of kinds with their powers


def _kinds(spelled: str) -> Kinds:
    words = spelled.split()
    if len(words) < 2 or not words[1].lstrip("-").isdigit():
        return ((spelled, 1),)
    return tuple((name, int(power)) for name, power in zip(words[::2], words[1::2], strict=True))


UNITS: dict[str, tuple[Kinds, Fraction]] = {}
for _spelled, _units in _UNITS.items():
    for _entry in _units.split():
        _names, _, _value = _entry.partition("=")
        UNITS |= dict.fromkeys(_names.split("|"), (_kinds(_spelled), Fraction(_value)))
MONEY = {_kinds(kind) for kind in ("US money", "euros", "pounds", "yen", "rupees")}
# Symbols that are units only in text or right after a number, since they are variables too.
SYMBOLS = frozenset(each_of("m g s h l j w v n ha in mi ml min mm cm km dm kg mg ft yd oz lb lbs hr sec rs cal"))

SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "mil": None,
    "billion": 10**9,
    "bn": 10**9,
    "trillion": 10**12,
    "quadrillion": 10**15,
    "quintillion": 10**18,
    "lakh": 10**5,
    "crore": 10**7,
    "dozen": 12,
    "score": 20,
    "gross": 144,
    "pair": None,
    "couple": None,
}
NUMBERS = {
    word: value
    for value, word in enumerate(
        each_of(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen"
        )
    )
}
NUMBERS |= {
    word: 20 + 10 * index for index, word in enumerate(each_of("twenty thirty forty fifty sixty seventy eighty ninety"))
}
PARTS = {"half": 2, "halves": 2, "third": 3, "thirds": 3, "fourth": 4, "fourths": 4, "quarter": 4, "quarters": 4}
PARTS |= {"fifth": 5, "fifths": 5, "sixth": 6, "sixths": 6, "eighth": 8, "eighths": 8, "tenth": 10, "tenths": 10}

ORDINALS = frozenset(each_of("first second third fourth fifth sixth seventh eighth ninth tenth"))

MONTHS = {
    name: number
    for number, names in enumerate(
        each_of(
            "january/jan february/feb march/mar april/apr may june/jun july/jul august/aug september/sep/sept "
            "october/oct november/nov december/dec"
        ),
        start=1,
    )
    for name in names.split("/")
}
WEEKDAYS = frozenset(each_of("monday tuesday wednesday thursday friday saturday sunday mon tue tues wed thu thurs fri"))

# Say nothing of the value, wherever they stand.
FILLER = frozenset(
    each_of(
        "the a an is are was equals equal exactly precisely approximately about roughly around nearly circa "
        "so thus hence therefore only just answer final result value we get have then simply total altogether "
        "overall of i think this that it which it's its our my correct option choice solution finally be "
        "would will must obtain respectively each apart there"
    )
)
# After a number: how it lies, not how much it is.
NEUTRAL = frozenset(
    each_of(
        "long old tall high wide deep thick away total altogether in all each remaining left apiece per of "
        "the a an them whole"
    )
)
# Change the value or what is claimed of it; a text that holds one is never reduced to the number beside it.
CHANGERS = frozenset(
    each_of(
        "trios triples triplets quadruples doubles bps "
        "not no nor never none neither without except but or and more less least most than fewer over under "
        "above below up down between from to until till through if when where for otherwise unless else "
        "whenever while with such suppose assuming plus minus times squared cubed root power remainder mod "
        "modulo base binary octal hex hexadecimal decimal roman north south east west bc ad bce ce am pm noon "
        "midnight o'clock maximum minimum max min greater larger smaller lower upper bound cannot can't isn't "
        "doesn't undetermined unknown undefined infinite infinitely double triple twice thrice fold tens "
        "dozens hundreds thousands millions billions ones k bn mn positive negative odd even first last next "
        "other another either both any some several many few maybe perhaps possibly probably wrong false "
        "incorrect almost divided multiplied by off before after ago since past short excess loss gain profit "
        "increase decrease reciprocal inverse factorial choose log ln pi percentages half third quarter "
        "halves st nd rd th thirds quarters fifths tenths hundredth hundredths thousandth thousandths every "
        "depends depending varies"
    )
)
IRREGULAR_PLURALS = frozenset(each_of("people men women children feet mice geese teeth sheep fish deer dice cattle"))

# Phrases that mean the same where they are the whole answer.
SYNONYMS = (
    frozenset({"no solution", "no solutions", "no real solution", "no real solutions", "none", "empty set"}),
    frozenset({"undefined", "does not exist", "dne", "do not exist"}),
    frozenset({"infinity", "infinite", "infinitely many"}),
    frozenset({"yes", "true"}),
    frozenset({"no", "false"}),
    frozenset({"all real numbers", "all reals", "all real"}),
    frozenset({"same", "equal", "they are equal"}),
)

FUNCTIONS = frozenset(
    each_of(
        "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt pi theta alpha beta "
        "gamma delta lambda max min gcd lcm det infty"
    )
)
WORDS = frozenset(
    set(UNITS)
    | set(SCALES)
    | set(NUMBERS)
    | set(MONTHS)
    | CHANGERS
    | (FILLER - {"a", "i"})
    | set(PARTS)
    | {"yes", "no"}
)
