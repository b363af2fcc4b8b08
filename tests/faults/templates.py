"""Chat templates that attack or never end, and what real ones do and must stay allowed to do."""

from __future__ import annotations

# By name: the template, and words of the refusal.
TEMPLATES: dict[str, tuple[str, str]] = {
    "no template": ("{% for %}", "cannot be parsed: line 1"),
    "too long": ("x" * 200_001, "200,001 characters long"),
    "globals": ("{{ cycler.__init__.__globals__.os.system('true') }}", "Python's internals: .__globals__ in line 1"),
    "an item": ("{{ messages['__class__'] }}", "two underscores in line 1"),
    "attr": ("{{ messages|attr('_' ~ '_class__') }}", "the attribute '__class__' of a list"),
    "map": ("{{ messages|map(attribute='x.__class__')|list }}", "filter map in line 1"),
    "format": ("{{ '{0.__class__}'.format(messages) }}", "the attribute '__class__' of a list"),
    "a change": ("{{ messages.append(messages) }}", "the attribute 'append' of a list"),
    "a file": ("{% include '/etc/passwd' %}", "reads other files (include)"),
    "lipsum": ("{{ lipsum(n=100000000) }}", "lipsum"),
    "nested loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "more than 2,000,000 steps",
    ),
    "loops over the turns": (
        "{% for a in messages %}{% for b in messages %}{% for c in messages %}{% for d in messages %}x"
        "{% endfor %}{% endfor %}{% endfor %}{% endfor %}",
        "more than 2,000,000 steps",
    ),
    "empty loops": (
        "{% for a in 'abcdefghij' %}" * 8 + "{% endfor %}" * 8,
        "more than 2,000,000 steps",
    ),
    "a long range": ("{% for a in range(10**9) %}{% endfor %}", "Range too big"),
    "a product": ("{{ 'a' * 10**10 }}", "(operator *)"),
    "a product never reached": ("{% if false %}{{ 'a' * 10**10 }}{% endif %}", "(operator *)"),
    "a filter never reached": ("{% if false %}{{ 'a'|center(9999999999) }}{% endif %}", "(filter center)"),
    "a power": ("{% set n = messages|length + 8 %}{{ n ** n ** n ** n }}", "(operator **)"),
    "doubling": (
        "{% set s = namespace(x='a') %}{% for i in range(99) %}{% set s.x = s.x ~ s.x %}{% endfor %}",
        "(operator ~)",
    ),
    "adding": (
        "{% set s = namespace(x='a') %}{% for i in range(99) %}{% set s.x = s.x + s.x %}{% endfor %}",
        "(operator +)",
    ),
    "lists of lists": (
        "{% set s = namespace(x=[1]) %}{% for i in range(99) %}{% set s.x = [s.x, s.x] %}{% endfor %}{{ s.x }}",
        "more than 2,000,000 steps",
    ),
    "a method": ("{{ 'a'.ljust(10000000000) }}", "(ljust)"),
    "replacing": ("{{ ('a' * 3000).replace('a', 'b' * 3000) }}", "(replace)"),
    "joining": ("{{ ('b' * 3000)|list|join('a' * 3000) }}", "(filter join)"),
    "a width": ("{{ '%10000000000d' % 1 }}", "(operator %)"),
    "a width among the values": ("{{ '{:>{}}'.format(1, 10000000000) }}", "(format)"),
    "an indent": ("{{ messages|tojson(indent=1000000000) }}", "(filter tojson)"),
    "a macro without end": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}", "calls itself without end"),
    "a macro that doubles": (
        "{% macro f(n) %}{% if n < 60 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(1) }}",
        "(f)",
    ),
    "a loop in itself": ("{% for m in [1] recursive %}{{ loop([1]) }}{% endfor %}", "calls itself without end"),
    "output": ("{% for i in range(90000) %}" + "x" * 1000 + "{% endfor %}", "more than 2,000,000 steps"),
    "deep brackets": ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", "nested too deeply"),
    "a long search": (
        "{% set b = 'x' * 90000 %}{% for i in range(9999) %}{% if 'y' in b %}{% endif %}{% endfor %}",
        "more than 2,000,000 steps",
    ),
}

# What would be large: refused before it is made.
LARGE = ["a product", "a filter never reached", "a method", "replacing", "joining", "a width", "an indent"]
LARGE += ["a width among the values"]

# What real templates do and must stay allowed.
INNOCENT: dict[str, str] = {
    "a long loop": "{% for i in range(20000) %}{% endfor %}{{ messages[-1]['content'] }}",
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m | tojson(ensure_ascii=False) }}{% endif %}{% if loop.last %}{% break %}{% endif %}{% endfor %}"
    ),
    "refusing": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('must alternate') }}{% endif %}{{ bos_token + '[INST] ' + m['content'] }}{% endfor %}"
    ),
    "namespaces and slices": (
        "{%- set ns = namespace(last=messages|length - 1, text='') %}{%- for m in messages[::-1] %}"
        "{%- set ns.text = m.content.split('</think>')[-1].lstrip('\\n') ~ ns.text %}{%- endfor %}{{ ns.text }}"
    ),
    "macros": (
        "{% macro show(value, depth=0) %}{% if value is mapping %}{% for k, v in value|dictsort %}{{ k }}: "
        "{{ show(v, depth + 1) }}{% endfor %}{% else %}{{ '%s%s' % (' ' * depth, value) }}{% endif %}{% endmacro %}"
        "{% for m in messages %}{{ show(m) }}{% endfor %}{{ strftime_now('%d %b %Y') }}{{ tools.x.y }}"
    ),
}
